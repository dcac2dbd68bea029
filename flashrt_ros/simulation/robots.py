"""The simulated robots by name. Nothing of MuJoCo is imported before one is built."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from flashrt_ros.simulation.assets import INSTALL, SimulationError

if TYPE_CHECKING:
    from flashrt_ros.simulation.scene import Scene

ROBOTS = ('so101', 'aloha')


def build(name: str) -> Scene:
    """Raises SimulationError for an unknown robot, or if its packages are not installed."""
    if name not in ROBOTS:
        raise SimulationError(
            f"there is no simulated robot '{name}'", 'robot', f'take one of {", ".join(ROBOTS)}'
        )
    require_mujoco()
    module = importlib.import_module(f'flashrt_ros.simulation.{name}')
    scene: Scene = getattr(module, name)()
    return scene


def require_mujoco() -> None:
    """Raises SimulationError if MuJoCo is not installed."""
    if importlib.util.find_spec('mujoco') is None:
        raise SimulationError("the package 'mujoco' is not installed", 'simulation', INSTALL)
