"""A chunk as one trajectory: on its grid, within the limits, smooth, and at rest at its end.

And as joint_trajectory_controller takes it: `joint_trajectory_controller` states the rules and their source.
"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.joint_trajectory_controller import UPDATE_NS, Follower, refusal
from control.test_executor import FREE, HERE, MS, NOW, PERIOD, bounded, chunk, commands, settings
from flashrt_ros.control import Executor
from flashrt_ros.control.trajectory import Trajectory, standing, trajectory_of, velocities_of


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
    central = (rows[5:] - rows[3:-2]) / 0.2
    before, after = (rows[4:-1] - rows[3:-2]) / 0.1, (rows[5:] - rows[4:-1]) / 0.1
    most = np.where(before * after > 0.0, 3.0 * np.minimum(np.abs(before), np.abs(after)), 0.0)
    told = trajectory.velocities[1:-1, 0]
    np.testing.assert_allclose(told, np.clip(central, -most, most), atol=1e-12)
    assert np.isclose(told, central).sum() > 10
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
    trajectory = standing(np.array([0.3]), PERIOD)
    assert (trajectory.offsets_ns, trajectory.positions.tolist()) == ([PERIOD], [[0.3]])
    assert trajectory.velocities.tolist() == [[0.0]]


def moving(**limits):
    """An executor half a second into a chunk that moves at 1 per second, and the time."""
    executor = Executor(settings(safe_action='hold'), bounded(**limits))
    executor.accept(chunk(np.arange(20.0) / 10), NOW, HERE)
    commands(executor, NOW, NOW + 500 * MS)
    return executor, NOW + 500 * MS


@pytest.mark.parametrize('acceleration', [np.inf, 5.0])
def test_the_controller_takes_the_way_to_rest_whatever_its_clock_says(acceleration):
    """A trajectory that ends in the controller's past is refused, so this one must not name a time."""
    executor, now = moving(acceleration=acceleration)
    chunk_mode = trajectory_of(executor, now, PERIOD)
    assert refusal(chunk_mode, now + 100 * MS) == ''
    assert refusal(chunk_mode, now + 60_000 * MS) == 'it ends in the past'
    executor.stop(now, 'hold')
    executor.command(now)
    for ahead in (-60_000 * MS, 0, 60_000 * MS):
        assert refusal(trajectory_of(executor, now, PERIOD), now + ahead) == ''
        assert refusal(standing(HERE, PERIOD), now + ahead) == ''


@pytest.mark.parametrize(('latency', 'lost'), [(1 * MS, 0), (35 * MS, 0), (1 * MS, 4)])
def test_the_controller_comes_to_rest_where_the_executor_does(latency, lost):
    """Sent anew at every tick, late, and with the first ones lost on the way."""
    executor, now = moving(acceleration=5.0)
    controller = Follower(executor.position, now)
    controller.take(trajectory_of(executor, now, PERIOD), now)
    executor.stop(now, 'hold')
    sent, told = [], []
    for tick in range(40):
        at = now + tick * PERIOD
        executor.command(at)
        if tick >= lost:
            sent.append((at + latency, trajectory_of(executor, at, PERIOD)))
        for instant in range(at, at + PERIOD, 2 * MS):
            while sent and sent[0][0] <= instant:
                assert controller.take(sent.pop(0)[1], instant) == ''
            told.append(controller.update(instant)[0])
    assert told[-1] == pytest.approx(executor.position[0], abs=1e-6)
    assert controller.velocity[0] == pytest.approx(0.0, abs=1e-6)
    assert max(told) < executor.position[0] + 0.001 + 0.02 * lost


def test_the_controller_follows_chunk_after_chunk_as_step_by_step():
    """Each replaces the one before in flight; the spline is where the commands are, not behind or beyond."""
    executor = Executor(settings(), FREE)
    controller, follows, wanted = Follower(HERE, NOW), [], []
    for tick in range(150):
        now = NOW + tick * PERIOD
        if tick % 20 == 0:
            rows = np.sin((np.arange(20) * 0.1 + tick * 0.02) * 2.0)
            executor.accept(chunk(rows, start=now, sequence=tick), now, HERE)
        executor.command(now)
        if tick % 20 == 0:
            assert controller.take(trajectory_of(executor, now, PERIOD), now + MS) == ''
        for instant in range(now + MS, now + PERIOD, UPDATE_NS):
            follows.append(controller.update(instant)[0])
            wanted.append(np.sin((instant + UPDATE_NS - NOW) * 2e-9))
    # The controller stood at first; that is over with the first row, after 50 of its updates.
    np.testing.assert_allclose(follows[50:], wanted[50:], atol=0.005)


@given(
    st.lists(st.floats(-1.0, 1.0, width=32), min_size=2, max_size=12),
    st.floats(0.001, 0.1),
    st.integers(0, 99),
)
def test_between_two_points_the_controller_stays_between_them(values, first_s, percent):
    positions = np.array(values)[:, None]
    times = [0, *(round(first_s * 1e9) + 100 * MS * row for row in range(len(values) - 1))]
    velocities = velocities_of(positions, times)
    controller = Follower(positions[0], NOW, update_ns=0)
    controller.velocity = velocities[0]
    assert controller.take(Trajectory(NOW, times[1:], positions[1:], velocities[1:]), NOW) == ''
    for row, (begin, end) in enumerate(pairwise(times)):
        told = controller.update(NOW + begin + (end - begin) * percent // 100)[0]
        low, high = sorted(positions[row : row + 2, 0])
        assert low - 1e-9 <= told <= high + 1e-9
        # docs/execution.md: so much faster it may be in between.
        fastest = np.abs(np.diff(positions[:, 0]) / np.diff(times)).max() * 1e9
        assert np.abs(controller.velocity) <= 1.5 * fastest + 1e-9


def test_with_limited_acceleration_every_row_is_reached_and_rest_comes_behind_the_last():
    executor = Executor(settings(hold=2000), bounded(acceleration=5.0))
    executor.accept(chunk(np.arange(20.0) / 10), NOW, HERE)
    told = commands(executor, NOW, NOW + 500 * MS)
    now = NOW + 500 * MS - PERIOD
    trajectory = trajectory_of(executor, now, PERIOD)
    told += commands(executor, NOW + 500 * MS, NOW + 3000 * MS)
    times = [trajectory.stamp_ns + offset - NOW for offset in trajectory.offsets_ns]
    np.testing.assert_allclose(
        trajectory.positions[:, 0], [told[time // PERIOD] for time in times], atol=0.02
    )
    assert trajectory.positions[-1, 0] == pytest.approx(told[-1], abs=0.01)
    assert trajectory.positions[-1, 0] > 1.9
    assert np.abs(np.diff(trajectory.positions[-2:, 0])) < 0.03


def test_where_a_joint_stands_at_its_limit_the_spline_does_not_leave_it():
    executor = Executor(settings(), bounded(low=0.0))
    executor.accept(chunk([0.0, 0.0, 0.0, 0.3, 0.6, 0.6]), NOW, HERE)
    executor.command(NOW)
    controller = Follower(HERE, NOW)
    assert controller.take(trajectory_of(executor, NOW, PERIOD), NOW) == ''
    told = [controller.update(NOW + time * MS)[0] for time in range(0, 600, 2)]
    assert min(told) >= 0.0
    assert max(told) <= 0.6 + 1e-12


def test_single_points_want_an_update_rate_that_is_their_own():
    """Of docs/execution.md: the controller begins each message one update ahead of itself, which at a higher
    rate of updates than of messages is a jerk at every message."""
    fastest = {}
    for update_ns in (2 * MS, PERIOD // 2):
        controller, told = Follower(HERE, NOW, update_ns), []
        for tick in range(100):
            now = NOW + tick * PERIOD // 2
            point = Trajectory(0, [PERIOD // 2], np.array([[0.01 * tick]]), np.zeros((1, 0)))
            assert controller.take(point, now) == ''
            told += [controller.update(at)[0] for at in range(now, now + PERIOD // 2, update_ns)]
        fastest[update_ns] = np.diff(told).max() / (update_ns * 1e-9)
    assert fastest == pytest.approx({2 * MS: 5 / 3, 10 * MS: 1.0}, rel=0.02)
