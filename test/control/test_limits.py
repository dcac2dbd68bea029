"""Limits of every command: position, velocity, acceleration, step; from YAML and URDF."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrt_ros.configuration import load_config
from flashrt_ros.configuration.load import parse_config
from flashrt_ros.control import Limits
from flashrt_ros.control.limits import KINDS
from flashrt_ros.control.urdf import JointLimits, read_limits
from flashrt_ros.errors import ConfigError

PERIOD = 0.02
CONFIG = load_config(Path(__file__).parents[2] / 'config' / 'so101.yaml')


def one(**given_limits):
    """Limits of one joint; what is not given is free."""
    free = Limits.none(1, PERIOD)
    names = ('low', 'high', 'step', 'velocity', 'acceleration', 'jump')
    values = [np.array([given_limits.get(name, getattr(free, name)[0])]) for name in names]
    return Limits(*values, PERIOD)


def follow(limits, targets, start=0.0):
    """Commands for these targets, one a period, from rest at `start`; and the clamps of each kind."""
    position, speed, before, told = np.array([start]), None, np.array([start]), []
    clamps = dict.fromkeys(KINDS, 0)
    for target in targets:
        target = np.array([target])
        limited = limits.apply(target, position, speed, (target - before) / PERIOD)
        position, speed, before = limited.positions, limited.velocities, target
        told.append(float(position[0]))
        for kind in KINDS:
            clamps[kind] += int(limited.clamped[kind].sum())
    return np.array(told), clamps


def test_without_limits_the_target_is_the_command():
    told, clamps = follow(one(), [1.0, -5.0, 3.0])
    assert told.tolist() == [1.0, -5.0, 3.0]
    assert not any(clamps.values())


def test_velocity_bounds_the_way_of_one_period():
    told, clamps = follow(one(velocity=5.0), [0.25] * 4)
    assert told == pytest.approx([0.1, 0.2, 0.25, 0.25])
    assert clamps == {'position': 0, 'velocity': 2, 'acceleration': 0, 'step': 0}


def test_acceleration_bounds_the_change_of_speed_and_does_not_overshoot():
    told, clamps = follow(one(acceleration=10.0), [1.0] * 60)
    speed = np.diff(told, prepend=0.0) / PERIOD
    change = np.diff(speed, prepend=0.0) / PERIOD
    assert np.abs(change).max() <= 10.0 + 1e-6
    assert told.max() <= 1.0 + 1e-9
    assert told[-1] == pytest.approx(1.0, abs=1e-6)
    # Full acceleration half the way and full braking the other half would take 2 sqrt(1 / 10) s = 32 periods.
    assert np.argmax(told > 0.999) <= 36
    assert clamps['acceleration'] > 0


def test_a_target_that_moves_within_the_limits_is_followed_exactly():
    time = np.arange(200) * PERIOD
    targets = 0.5 * (1 - np.cos(2.0 * time))
    told, clamps = follow(one(acceleration=2.5, velocity=1.2), targets)
    np.testing.assert_allclose(told, targets, rtol=0, atol=2e-3)
    assert clamps['velocity'] == 0


def test_a_jump_of_a_moving_target_is_caught_up_within_the_limits():
    time = np.arange(300) * PERIOD
    targets = 0.5 * time + np.where(time > 1.0, 0.3, 0.0)
    told, _ = follow(one(acceleration=4.0, velocity=1.0), targets)
    speed = np.diff(told, prepend=0.0) / PERIOD
    assert np.abs(np.diff(speed)).max() / PERIOD <= 4.0 + 1e-6
    assert speed.max() <= 1.0 + 1e-9
    np.testing.assert_allclose(told[-100:], targets[-100:], rtol=0, atol=1e-6)


def test_a_joint_brakes_before_the_end_of_its_range():
    told, clamps = follow(one(high=1.0, acceleration=5.0), np.linspace(0.0, 4.0, 100))
    speed = np.diff(told, prepend=0.0) / PERIOD
    assert told.max() <= 1.0 + 1e-12
    assert np.abs(np.diff(speed)).max() / PERIOD <= 5.0 + 1e-6
    assert told[-1] == pytest.approx(1.0, abs=1e-6)
    assert clamps['position'] > 0


def test_outside_its_range_a_joint_is_never_carried_further_out():
    limits = one(low=-1.0, high=1.0, acceleration=1.0)
    limited = limits.apply(np.array([0.0]), np.array([1.5]), np.array([3.0]))
    assert limited.positions[0] <= 1.5


def test_the_largest_step_holds_whatever_the_rest_says():
    limited = one(step=0.01, velocity=10.0).apply(np.array([5.0]), np.array([0.0]), np.array([0.0]))
    assert limited.positions[0] == pytest.approx(0.01)
    assert limited.clamped['step'].tolist() == [True]


def test_limits_at_another_period_allow_the_same_speed():
    limits = one(step=0.01).every(0.1)
    assert limits.apply(np.array([5.0]), np.array([0.0])).positions[0] == pytest.approx(0.05)


def test_joints_with_and_without_acceleration_limit_go_together():
    free = np.full(2, np.inf)
    limits = Limits(-free, free, free, free, np.array([np.inf, 1.0]), free, PERIOD)
    limited = limits.apply(np.array([1.0, 1.0]), np.zeros(2))
    assert limited.positions[0] == 1.0
    assert limited.positions[1] == pytest.approx(1.0 * PERIOD**2)


@given(
    targets=st.lists(st.floats(-5.0, 5.0), min_size=1, max_size=40),
    start=st.floats(-0.9, 0.9),
    velocity=st.floats(0.05, 20.0),
    acceleration=st.floats(0.5, 200.0),
    step=st.floats(0.005, 1.0),
)
def test_whatever_the_target_nothing_leaves_the_limits(targets, start, velocity, acceleration, step):
    limits = one(low=-1.0, high=1.0, velocity=velocity, acceleration=acceleration, step=step)
    told, _ = follow(limits, [target for target in targets for _ in range(3)], start)
    ways = np.diff(told, prepend=start)
    changes = np.diff(ways, prepend=0.0)
    assert np.abs(told).max() <= 1.0 + 1e-9
    assert np.abs(ways).max() <= min(velocity * PERIOD, step) + 1e-9
    # A step limit tighter than the speed that was reached brakes at once; without it acceleration holds.
    assert np.abs(changes).max() <= acceleration * PERIOD**2 + 1e-9


URDF = """<robot name="r">
  <link name="l"/>
  <joint name="a" type="revolute"><limit lower="-1.0" upper="2.0" velocity="3.0" effort="1"/></joint>
  <joint name="b" type="continuous"><limit velocity="0" effort="1"/></joint>
  <joint name="c" type="prismatic"><limit upper="0.04" effort="1"/></joint>
  <joint name="free" type="continuous"/>
  <joint name="fixed" type="fixed"/>
  <joint name="bad" type="revolute"><limit lower="x" upper="2.0"/></joint>
  <joint name="empty" type="revolute"><limit lower="1" upper="1"/></joint>
</robot>"""


def test_limits_are_read_from_a_robot_description():
    limits = read_limits(URDF, ['c', 'a', 'b', 'free'], 'test')
    assert limits == {
        'a': JointLimits(-1.0, 2.0, 3.0),
        'b': JointLimits(None, None, None),
        'c': JointLimits(0.0, 0.04, None),
        'free': JointLimits(),
    }


@pytest.mark.parametrize(
    ('text', 'joint', 'message'),
    [
        ('<robot', 'a', 'this is not XML'),
        ('<sdf/>', 'a', 'the root is <sdf>, not <robot>'),
        (URDF, 'd', "it has no joint 'd'. Name the joints"),
        (URDF, 'fixed', "joint fixed: it is of type 'fixed'"),
        (URDF, 'bad', "joint bad: its lower is 'x'"),
        (URDF, 'empty', 'joint empty: lower 1 is not below upper 1'),
    ],
)
def test_a_description_that_says_nothing_useful_is_refused(text, joint, message):
    with pytest.raises(ConfigError, match=message):
        read_limits(text, [joint], 'robot_description')


def test_the_tighter_of_yaml_and_description_holds():
    joint = {'position_max': 1.0, 'position_min': -5.0, 'max_velocity': 2.0, 'max_acceleration': 9.0}
    data = CONFIG.model_dump()
    data['robot']['joints'][0] |= {**joint, 'max_jump': 0.3}
    config = parse_config(data, 'test', Path())
    limits = Limits.of(config, {'shoulder_pan': JointLimits(-1.5, 1.5, 1.0)})
    assert (limits.low[0], limits.high[0], limits.velocity[0]) == (-1.5, 1.0, 1.0)
    assert (limits.acceleration[0], limits.jump[0], limits.step[0]) == (9.0, 0.3, 0.15)
    assert limits.period_s == pytest.approx(1 / 50)
    assert limits.velocity[1] == np.inf
