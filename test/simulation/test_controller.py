"""What a robot's own controller does with good commands and with bad ones, on made-up times."""

import math

import numpy as np
import pytest

pytest.importorskip('mujoco', reason='needs requirements-sim.txt: make simulation')

from flashrt_ros.simulation.controller import Controller
from flashrt_ros.simulation.scene import Joint

MS = 1_000_000
JOINTS = [Joint('a', 0, 0, -1.0, 1.0, 0.0, speed=2.0), Joint('b', 1, 1, -3.0, 3.0, 0.5, speed=100.0)]


@pytest.fixture
def controller():
    made = Controller(JOINTS, silence_s=0.1)
    made.reset(0, np.array([0.0, 0.5]))
    return made


def test_a_trajectory_is_followed_between_its_points_and_held_at_its_end(controller):
    assert controller.command(['b', 'a'], [(100 * MS, [1.0, 0.1]), (200 * MS, [2.0, 0.0])], 0) == ''
    np.testing.assert_allclose(controller.set_point(50 * MS), [0.05, 0.75])
    np.testing.assert_allclose(controller.set_point(150 * MS), [0.05, 1.5])
    np.testing.assert_allclose(controller.set_point(10_000 * MS), [0.0, 2.0])


def test_a_new_trajectory_goes_on_from_where_the_old_one_is(controller):
    controller.command(['a', 'b'], [(1000 * MS, [1.0, 0.5])], 0)
    before = controller.set_point(300 * MS)
    controller.command(['a', 'b'], [(200 * MS, [0.0, 0.5])], 300 * MS)
    np.testing.assert_allclose(controller.set_point(300 * MS), before)
    np.testing.assert_allclose(controller.set_point(350 * MS), [0.225, 0.5])


def test_points_of_the_past_are_left_out_and_those_to_come_keep_their_time(controller):
    points = [(0, [0.9, 0.5]), (100 * MS, [0.2, 0.5]), (200 * MS, [0.3, 0.5])]
    controller.command(['a', 'b'], points, now_ns=150 * MS, start_ns=0)
    np.testing.assert_allclose(controller.set_point(200 * MS)[0], 0.1)  # as fast as its motor goes
    np.testing.assert_allclose(controller.set_point(400 * MS)[0], 0.3)


@pytest.mark.parametrize(
    ('names', 'points', 'why'),
    [
        (['a', 'b'], [(0, [math.nan, 0.0])], "'a' is not finite"),
        (['a', 'b'], [(0, [0.0, math.inf])], "'b' is not finite"),
        (['a'], [(0, [0.0])], "no joint 'b'"),
        (['a', 'b', 'c'], [(0, [0.0, 0.0, 0.0])], "unknown joint 'c'"),
        (['a', 'b', 'a'], [(0, [0.0, 0.0, 0.0])], 'twice'),
        (['a', 'b'], [], 'no points'),
        (['a', 'b'], [(0, [0.0])], 'not one position'),
        (['a', 'b'], [(5, [0.0, 0.0]), (5, [0.0, 0.0])], 'do not increase'),
        (['a', 'b'], [(-5, [0.0, 0.0])], 'do not increase'),
    ],
)
def test_what_cannot_be_followed_is_refused_and_changes_nothing(controller, names, points, why):
    controller.command(['a', 'b'], [(100 * MS, [0.2, 0.6])], 0)
    assert why in controller.command(names, points, 10 * MS)
    assert sum(controller.counts.refused.values()) == 1
    np.testing.assert_allclose(controller.set_point(100 * MS), [0.2, 0.6])


def test_a_trajectory_that_is_over_is_refused(controller):
    assert 'past' in controller.command(['a', 'b'], [(MS, [0.2, 0.6])], now_ns=10 * MS, start_ns=0)


def test_ranges_and_motors_limit_every_set_point_and_are_counted(controller):
    controller.command(['a', 'b'], [(0, [5.0, 0.5])], 0)
    assert controller.counts.limited == {'a': 1}
    assert controller.set_point(100 * MS)[0] == pytest.approx(0.2)
    assert controller.set_point(10_000 * MS)[0] == 1.0


def test_silence_is_reported_once_and_held(controller):
    assert controller.silent
    controller.command(['a', 'b'], [(50 * MS, [0.1, 0.5])], 0)
    controller.set_point(140 * MS)
    assert not controller.silent
    held = [controller.set_point(time * MS) for time in (200, 300, 400)]
    assert controller.silent
    assert controller.counts.silences == 1
    np.testing.assert_allclose(held, np.tile([0.1, 0.5], (3, 1)))


def test_reset_in_the_midst_of_a_trajectory_stays_where_it_was_put(controller):
    controller.command(['a', 'b'], [(1000 * MS, [1.0, 0.5])], 0)
    controller.set_point(500 * MS)
    controller.reset(500 * MS, np.array([-0.4, 0.0]))
    np.testing.assert_allclose(controller.set_point(900 * MS), [-0.4, 0.0])
