"""An OpenGL context without a display: EGL with an NVIDIA GPU, else OSMesa, which computes in software.

MUJOCO_GL (egl or osmesa) decides where it is set. MuJoCo itself would decide when it is imported, once and
for all; here it is decided when the first picture is wanted, and what is missing is said.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from flashrt_ros.simulation.assets import SimulationError

PACKAGES = {'osmesa': 'libosmesa6', 'egl': 'libegl1 libgl1-mesa-dri'}
"""Library -> what Debian and Ubuntu call it."""


def open_context(width: int, height: int) -> Any:
    """A current context of mujoco's. Raises SimulationError that names the package to install."""
    wanted = os.environ.get('MUJOCO_GL', '').lower()
    gpu = os.path.exists('/dev/nvidiactl')
    libraries = [wanted] if wanted in PACKAGES else ['egl', 'osmesa'] if gpu else ['osmesa', 'egl']
    failures = []
    for library in libraries:
        try:
            context = importlib.import_module(f'mujoco.{library}').GLContext(width, height)
            context.make_current()
            return context
        except Exception as error:  # A missing library is an ImportError, AttributeError or a GL error.
            failures.append(f'{library}: {type(error).__name__}: {error}')
    packages = 'run: ' + ', or '.join(f'apt install {PACKAGES[library]}' for library in libraries)
    raise SimulationError(f'no OpenGL without a display ({"; ".join(failures)})', 'simulation', packages)
