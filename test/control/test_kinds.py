"""Offsets, steps and grippers become positions, and positions become what guides the policy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flashrt_ros.configuration import load_config
from flashrt_ros.configuration.load import parse_config
from flashrt_ros.control import ActionKinds
from flashrt_ros.errors import ConfigError
from flashrt_ros.ingest import JointMap

KINDS = ActionKinds(
    ('position', 'delta', 'step', 'gripper'), np.array([0.0, 0.0, 0.0, 0.01]), np.array([1.0, 1.0, 1.0, 0.05])
)
ANCHOR = np.array([9.0, 2.0, 3.0, 0.02])
ROWS = np.array([[0.1, 0.1, 0.1, 0.0], [0.2, 0.2, 0.1, 0.5], [0.3, 0.3, -0.3, 1.5]])


def test_every_kind_becomes_a_position():
    expected = [[0.1, 2.1, 3.1, 0.01], [0.2, 2.2, 3.2, 0.03], [0.3, 2.3, 2.9, 0.05]]
    np.testing.assert_allclose(KINDS.to_positions(ROWS, ANCHOR), expected)


def test_positions_become_actions_again():
    rows = np.clip(ROWS, -1.0, 1.0)
    positions = KINDS.to_positions(rows, ANCHOR)
    np.testing.assert_allclose(KINDS.from_positions(positions, ANCHOR), rows, atol=1e-15)


def test_an_anchor_shifts_offsets_and_nothing_else():
    shifted = KINDS.to_positions(ROWS, ANCHOR + 1.0) - KINDS.to_positions(ROWS, ANCHOR)
    np.testing.assert_allclose(shifted, np.tile([0.0, 1.0, 1.0, 0.0], (3, 1)))


def test_offsets_have_a_scale_and_no_offset():
    """57.3 degrees of change is 1 rad of change, wherever the joint's zero is."""
    joints = JointMap(('a', 'b', 'c', 'd'), (57.3, 57.3, 57.3, 57.3), (90.0, 90.0, 90.0, 90.0))
    ros = KINDS.in_ros_units(np.array([[147.3, 57.3, 57.3, 0.5]]), joints)
    np.testing.assert_allclose(ros, [[1.0, 1.0, 1.0, 0.5]])
    np.testing.assert_allclose(KINDS.in_checkpoint_units(ros, joints), [[147.3, 57.3, 57.3, 0.5]], rtol=1e-6)


def test_only_offsets_need_an_anchor():
    assert KINDS.relative
    assert not KINDS.with_kinds(['position', 'gripper', 'position', 'gripper']).relative
    assert not ActionKinds.positions(3).relative


def config(**joint):
    data = load_config(Path(__file__).parents[2] / 'config' / 'so101.yaml').model_dump()
    data['robot']['joints'][-1] |= joint
    data['output']['action_kind'] = 'joint_delta'
    return parse_config(data, 'test', Path())


def test_kinds_come_from_the_configuration():
    kinds = ActionKinds.of(config(kind='gripper'))
    assert kinds.kinds == ('delta',) * 5 + ('gripper',)
    assert (kinds.closed[-1], kinds.opened[-1]) == (-0.18, 1.75)
    same = replace(kinds, kinds=('delta',) * 6)
    assert ActionKinds.of(config()).kinds == same.kinds


def test_a_gripper_needs_its_range():
    with pytest.raises(ConfigError, match=r'kind: a gripper opens between two positions'):
        config(kind='gripper', position_min=None)
