"""Where the robot models of the optional packages lie on disk."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flashrt_ros.errors import FlashRTError

INSTALL = 'run: make simulation, or: pip install -r requirements-sim.txt'


class SimulationError(FlashRTError):
    """The simulated robot cannot be built or seen on this machine."""


def assets_of(package: str, distribution: str) -> Path:
    """Directory with the model files of an installed package, which is not imported.

    Raises SimulationError if it is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SimulationError(f"the package '{distribution}' is not installed", 'simulation', INSTALL)
    return Path(found.submodule_search_locations[0]) / 'assets'
