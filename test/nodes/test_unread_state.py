"""Serialized joint states give what deserializing them gives, however they follow each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState

from flashrt_ros.errors import ObservationError
from flashrt_ros.nodes.unread_state import StateReader

pytestmark = pytest.mark.ros

TEXTS = st.sampled_from(['', 'a', 'arm', 'joint_12', 'left/elbow', 'é' * 5])
NUMBERS = st.floats(width=64)


@st.composite
def joint_states(draw):
    names = draw(st.lists(TEXTS, max_size=5))
    message = JointState(name=names, position=draw(st.lists(NUMBERS, max_size=5)))
    if draw(st.booleans()):
        message.position = draw(st.lists(NUMBERS, min_size=len(names), max_size=len(names)))
    message.velocity = draw(st.lists(NUMBERS, max_size=3))
    message.header.frame_id = draw(TEXTS)
    message.header.stamp.sec = draw(st.integers(0, 2**31 - 1))
    return serialize_message(message)


def deserialized(message):
    state = deserialize_message(message, JointState)
    return list(state.name), np.asarray(state.position).tobytes()


def read(reader, message):
    found = reader.unread(message)
    return list(found.name), np.asarray(found.position).tobytes()


@settings(max_examples=150, deadline=None)
@given(st.lists(joint_states(), min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=8))
def test_any_sequence_reads_as_deserialized(messages, order):
    reader = StateReader()
    for index in [*range(len(messages)), *order]:
        message = messages[index % len(messages)]
        assert read(reader, message) == deserialized(message)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_ones_are_refused_or_read_as_deserialized(data):
    message = JointState(name=['a', 'b', 'c'], position=[1.0, 2.0, 3.0], velocity=[4.0])
    whole = serialize_message(message)
    reader = StateReader()
    read(reader, whole)
    damaged = bytearray(whole[: data.draw(st.integers(5, len(whole)))])
    for _ in range(data.draw(st.integers(0, 2))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        expected = deserialized(bytes(damaged))
    except RuntimeError:
        expected = None
    try:
        found = read(reader, bytes(damaged))
    except ObservationError:
        found = None
    # What is cut off behind the positions is of no use to anybody, so it need not be there.
    assert found == expected or (expected is None and len(damaged) < len(whole))
    assert read(reader, whole) == deserialized(whole)


def test_those_with_the_same_names_are_not_deserialized_again(monkeypatch):
    reader = StateReader()
    messages = [
        serialize_message(JointState(name=['a', 'b'], position=[float(i), -float(i)])) for i in range(3)
    ]
    read(reader, messages[0])
    monkeypatch.setattr('flashrt_ros.nodes.unread_state.deserialize_message', None)
    assert [list(reader.unread(message).position) for message in messages] == [[0, 0], [1, -1], [2, -2]]


def test_bytes_that_are_no_joint_state_are_refused_when_they_are_looked_at():
    message = StateReader().unread(b'abc')
    with pytest.raises(ObservationError, match='3 bytes are no JointState'):
        _ = message.position
