"""Joint states are matched by name and converted to the checkpoint's units."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrt_ros.errors import ObservationError
from flashrt_ros.ingest import JointMap
from ingest.messages import joint_state

NAMES = ('pan', 'lift', 'gripper')
MAP = JointMap(NAMES, scale=(180 / math.pi, 1.0, 50.0), offset=(0.0, 0.5, 10.0))


@given(st.permutations([*NAMES, 'extra', 'wheel']))
def test_any_order_and_extra_joints(names):
    values = {'pan': 1.0, 'lift': 2.0, 'gripper': 3.0, 'extra': math.nan, 'wheel': 9.0}
    np.testing.assert_array_equal(
        MAP.positions(joint_state(names, [values[n] for n in names])), [1.0, 2.0, 3.0]
    )


def test_a_publisher_that_changes_its_order_midway():
    assert MAP.positions(joint_state(('pan', 'lift', 'gripper'), (1, 2, 3))).tolist() == [1, 2, 3]
    assert MAP.positions(joint_state(('gripper', 'pan', 'lift'), (3, 1, 2))).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ('names', 'positions', 'message'),
    [
        (
            ('pan', 'lift'),
            (1, 2),
            r"state: the joint 'gripper' is missing \(names: pan, lift\)\. Make robot\.joints match",
        ),
        ((), (), r"the joint 'pan' is missing \(names: none\)"),
        (('pan', 'lift', 'gripper', 'lift'), (1, 2, 3, 4), r"the joint 'lift' is listed 2 times"),
        (NAMES, (), '3 names but 0 positions'),
        (NAMES, (1, 2, 3, 4), '3 names but 4 positions'),
        (NAMES, (1, math.nan, 3), "the position of joint 'lift' is nan"),
        (NAMES, (1, 2, -math.inf), "the position of joint 'gripper' is -inf"),
    ],
)
def test_a_joint_state_that_cannot_be_used(names, positions, message):
    with pytest.raises(ObservationError, match=message):
        MAP.positions(joint_state(names, positions))


def test_units_of_the_checkpoint():
    state = MAP.to_checkpoint(np.array([math.pi / 2, 1.0, 0.2]))
    assert state.dtype == np.float32
    np.testing.assert_allclose(state, [90.0, 1.5, 20.0], rtol=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_units_go_there_and_back(positions):
    there = MAP.to_checkpoint(np.array([positions, positions]))
    np.testing.assert_allclose(MAP.to_ros(there), [positions, positions], rtol=1e-5, atol=1e-5)
