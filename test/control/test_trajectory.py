"""A chunk as one trajectory: on its grid, within the limits, smooth, and at rest at its end."""

import numpy as np
import pytest

from control.test_executor import FREE, HERE, MS, NOW, PERIOD, bounded, chunk, commands, settings
from flashrt_ros.control import Executor
from flashrt_ros.control.trajectory import standing, trajectory_of


def test_without_motion_there_is_none():
    assert trajectory_of(Executor(settings(), FREE), NOW, PERIOD) is None


def test_rows_to_come_are_due_on_the_grid_with_their_velocities():
    executor = Executor(settings(), FREE)
    rows = np.sin(np.arange(20) / 3.0)
    executor.accept(chunk(rows), NOW, HERE)
    executor.command(NOW + 250 * MS)
    trajectory = trajectory_of(executor, NOW + 250 * MS, PERIOD)
    assert trajectory.stamp_ns == NOW + 200 * MS
    assert trajectory.offsets_ns == [100 * MS * (row + 1) for row in range(17)]
    np.testing.assert_allclose(trajectory.positions[:, 0], rows[3:], atol=1e-12)
    np.testing.assert_allclose(trajectory.velocities[1:-1, 0], (rows[5:] - rows[3:-2]) / 0.2, atol=1e-12)
    assert trajectory.velocities[-1] == 0.0
    assert trajectory.velocities[0, 0] == pytest.approx(np.cos(1.0) / 0.3, rel=0.1)


def test_rows_keep_to_the_limits():
    executor = Executor(settings(), bounded(velocity=0.5, high=1.0))
    executor.accept(chunk([3.0] * 30), NOW, HERE)
    executor.command(NOW)
    trajectory = trajectory_of(executor, NOW, PERIOD)
    assert np.diff(trajectory.positions[:, 0]).max() <= 0.05 + 1e-12
    assert trajectory.positions.max() <= 1.0


def test_stopped_it_leads_to_rest():
    executor = Executor(settings(safe_action='hold'), bounded(acceleration=5.0))
    executor.accept(chunk(np.arange(20.0) / 10), NOW, HERE)
    commands(executor, NOW, NOW + 500 * MS)
    now = NOW + 500 * MS
    executor.stop(now, 'hold')
    before = executor.position[0]
    executor.command(now)
    trajectory = trajectory_of(executor, now, PERIOD)
    assert trajectory.velocities[-1] == 0.0
    assert 5 < len(trajectory.positions) < 25
    assert trajectory.positions[-1, 0] == pytest.approx(before + 0.1, abs=0.03)


def test_to_stand_is_one_point():
    trajectory = standing(np.array([0.3]), NOW, PERIOD)
    assert (trajectory.offsets_ns, trajectory.positions.tolist()) == ([PERIOD], [[0.3]])
    assert trajectory.velocities.tolist() == [[0.0]]
