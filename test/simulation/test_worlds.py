"""The simulated robots: the same seed gives the same world, the rules of the task, and what cameras see."""

import numpy as np
import pytest

from flashrt_ros.simulation.assets import SimulationError


def test_the_same_seed_lays_out_the_same_task(world):
    world.reset(3)
    first = world.snapshot()
    world.reset(4)
    assert not np.array_equal(world.snapshot().qpos, first.qpos)
    world.reset(3)
    np.testing.assert_array_equal(world.snapshot().qpos, first.qpos)
    np.testing.assert_array_equal(world.snapshot().mocap, first.mocap)


def test_the_robot_stands_at_home_and_follows_its_targets(world):
    world.reset(0)
    world.advance(world.home, 500)
    assert np.abs(world.positions - world.home).max() < 0.08  # the servos are springs
    target = world.home + np.array([0.3, 0, 0, 0, -0.2, -0.3])
    world.advance(target, 1000)
    assert np.abs(world.positions - target).max() < 0.08
    assert world.time_ns == 3_000_000_000


def test_success_needs_a_lifted_cube_at_rest_at_the_goal_and_an_open_gripper(world):
    world.reset(1)
    cube = slice(world.task._qpos, world.task._qpos + 3)
    at_goal = (*world.task.goal, 0.02)
    world.data.qpos[cube] = at_goal
    world.data.qvel[:] = 0
    assert not world.task.outcome(world.data).succeeded  # it was never lifted
    world.data.qpos[cube] = (*world.task.goal, 0.06)
    world.task.outcome(world.data)
    world.data.qpos[cube] = at_goal
    world.data.qvel[world.task._dof] = 0.1
    assert not world.task.outcome(world.data).succeeded  # it still moves
    world.data.qvel[:] = 0
    world.data.qpos[world.task._gripper] = 0.3
    assert not world.task.outcome(world.data).succeeded  # it is still held
    world.data.qpos[world.task._gripper] = 1.0
    assert world.task.outcome(world.data).succeeded
    world.data.qpos[cube] = (0.9, 0.0, 0.02)
    assert world.task.outcome(world.data).failed


def test_cameras_see_the_cube_where_it_is_and_a_tilt_moves_it(world, cameras):
    def purple(picture):
        """Mean place of the cube's pixels, and how many there are."""
        red, green, blue = picture.astype(int).transpose(2, 0, 1)
        rows, columns = np.nonzero((red - green > 40) & (blue - green > 40))
        return np.array([rows.mean(), columns.mean()]), len(rows)

    world.reset(0)
    world.task.place(world.data, np.array([0.2, -0.08]), np.array([0.25, 0.08]))
    place, count = purple(cameras.look('front', world.snapshot()))
    assert 300 < count < 3000
    world.task.place(world.data, np.array([0.2, 0.05]), np.array([0.25, 0.08]))
    other, _ = purple(cameras.look('front', world.snapshot()))
    assert other[1] - place[1] > 20  # further to the right, as +y is
    tilted, _ = purple(cameras.look('front', world.snapshot(), tilt_deg=10.0))
    assert tilted[0] - other[0] > 30  # a camera turned up sees things lower


def test_two_arms_have_fourteen_joints_and_three_cameras(aloha_scene):
    from flashrt_ros.simulation.cameras import Cameras
    from flashrt_ros.simulation.world import World

    world = World(aloha_scene)
    world.reset(2)
    target = world.home.copy()
    target[[0, 13]] = 0.4, 0.05
    world.advance(target, 1500)
    assert world.positions[0] == pytest.approx(0.4, abs=0.02)
    assert world.positions[13] == pytest.approx(0.05, abs=0.003)
    assert world.data.qpos[15] == pytest.approx(-0.05, abs=0.003)  # the other finger mirrors it
    pictures = Cameras(aloha_scene, 64, 48)
    seen = [pictures.look(name, world.snapshot()) for name in aloha_scene.cameras]
    pictures.close()
    assert len(seen) == 3
    assert all(picture.std() > 5 for picture in seen)


def test_without_an_opengl_library_the_package_to_install_is_named(so101_scene, monkeypatch):
    from flashrt_ros.simulation import gl
    from flashrt_ros.simulation.cameras import Cameras

    def missing(name):
        raise ImportError(f'no {name}')

    monkeypatch.setattr(gl.importlib, 'import_module', missing)
    monkeypatch.delenv('MUJOCO_GL', raising=False)
    with pytest.raises(SimulationError, match='apt install libosmesa6') as found:
        Cameras(so101_scene, 32, 24)
    assert 'libegl1' in str(found.value)


def test_a_missing_package_and_an_unknown_robot_are_named(monkeypatch):
    from flashrt_ros.simulation import robots

    with pytest.raises(SimulationError, match='so101, aloha'):
        robots.build('r2d2')
    monkeypatch.setattr(robots.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SimulationError, match='make simulation'):
        robots.build('so101')


def test_merged_corners_keep_the_shape_of_a_mesh():
    pytest.importorskip('mujoco', reason='needs requirements-sim.txt: make simulation')
    from flashrt_ros.simulation.meshes import cluster

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4000, 1, 3))
    corners = centres / np.linalg.norm(centres, axis=2, keepdims=True) + rng.normal(0, 0.01, (4000, 3, 3))
    vertices, faces = cluster(corners, 0.2)
    assert len(faces) < 2500
    assert faces.max() < len(vertices)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 1).max() < 0.15
