"""What the player does to a message, and what it refuses to play."""

import struct

import pytest
from evaluation.bags import JOINT_STATE, TYPES, joint_state, write_bag

from flashrt_ros.evaluation.bag import BagError, Record, open_bag

pytestmark = pytest.mark.ros

RECORDED_NS = 1_699_999_999_900_000_007


@pytest.mark.parametrize('little', [True, False], ids=['little endian', 'big endian'])
@pytest.mark.parametrize('shift_ns', [0, 99_999_993, 123_456_789_012_345_678, -1_000_000_008])
def test_stamp_moves_and_nothing_else(little, shift_ns):
    from demo.player import shifted

    original = joint_state(RECORDED_NS, [0.1, 0.2])
    data = bytes(TYPES.serialize_cdr(original, JOINT_STATE, little_endian=little))
    moved = TYPES.deserialize_cdr(shifted(Record('/joint_states', 0, data), shift_ns), JOINT_STATE)
    assert moved.header.stamp.sec * 10**9 + moved.header.stamp.nanosec == RECORDED_NS + shift_ns
    assert moved.name == original.name
    assert moved.position.tolist() == original.position.tolist()


def test_stamp_beyond_the_range_of_the_message():
    from demo.player import shifted

    data = bytes(TYPES.serialize_cdr(joint_state(RECORDED_NS, []), JOINT_STATE))
    with pytest.raises(struct.error):
        shifted(Record('/joint_states', 0, data), 10**19)


def test_message_without_a_header_is_refused(tmp_path):
    from demo.player import check_headers

    with open_bag(write_bag(tmp_path / 'bag')) as bag:
        expected = r"std_msgs/msg/String on '/words' does not begin with a header.*Leave the topic out"
        with pytest.raises(BagError, match=expected):
            check_headers(bag)
