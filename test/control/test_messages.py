"""Chunks as they come over the wire, whichever library decoded them."""

from types import SimpleNamespace

import numpy as np
import pytest

from flashrt_ros.control import ActionKinds, ChunkError, chunk_from_message
from flashrt_ros.control.history import StateHistory


def chunk_message(values, kind=0):
    stamp = SimpleNamespace(sec=1, nanosec=5)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp),
        policy='nano',
        sequence=3,
        epoch=1,
        start=stamp,
        step=SimpleNamespace(sec=0, nanosec=33_333_333),
        horizon=2,
        action_dim=2,
        names=['a', 'b'],
        kinds=[kind, kind],
        JOINT_POSITION=0,
        data=np.array(values, dtype=np.float32),
        prefix=2,
    )


def test_chunk_is_read_row_by_row():
    chunk = chunk_from_message(chunk_message([1, 2, 3, 4]))
    assert chunk.actions.tolist() == [[1, 2], [3, 4]]
    assert (chunk.observed_ns, chunk.start_ns, chunk.step_ns) == (1_000_000_005, 1_000_000_005, 33_333_333)


def test_chunk_with_a_value_too_few():
    with pytest.raises(ChunkError, match='3 values and 2 kinds for 2 rows of 2 columns'):
        chunk_from_message(chunk_message([1, 2, 3]))


def test_chunk_of_a_kind_that_nobody_executes():
    with pytest.raises(ChunkError, match='kind 2 are not supported'):
        chunk_from_message(chunk_message([1, 2, 3, 4], kind=2))


RANGES = ActionKinds(('position', 'position'), np.array([0.0, 0.1]), np.array([0.0, 0.5]))
"""Of the joints b and a: only a has a range."""


def test_offsets_are_anchored_to_the_position_measured_at_the_observation():
    asked = []

    def anchor(time_ns):
        asked.append(time_ns)
        return np.array([10.0, 20.0])

    chunk = chunk_from_message(chunk_message([1, 2, 3, 4], kind=3), ('b', 'a'), RANGES, anchor)
    assert chunk.actions.tolist() == [[12, 21], [14, 23]]
    assert chunk.names == ('b', 'a')
    steps = chunk_from_message(chunk_message([1, 2, 3, 4], kind=4), ('b', 'a'), RANGES, anchor)
    assert steps.actions.tolist() == [[12, 21], [16, 24]]
    assert asked == [1_000_000_005] * 2


def test_kinds_go_with_their_column():
    message = chunk_message([0.5, 2, 1.0, 4])
    message.kinds = [7, 0]
    chunk = chunk_from_message(message, ('b', 'a'), RANGES)
    np.testing.assert_allclose(chunk.actions, [[2, 0.3], [4, 0.5]])


@pytest.mark.parametrize(
    ('kinds', 'arguments', 'message'),
    [
        ([3, 0], (), 'it holds offsets or gripper openings'),
        ([3, 0], (('b', 'a'), RANGES), 'no joint state of the time of its observation'),
        ([3, 0], (('b', 'a'), RANGES, lambda _: None), 'no joint state of the time of its observation'),
        ([0, 7], (('b', 'a'), RANGES), "the gripper 'b' has no range"),
    ],
)
def test_what_cannot_be_made_a_position_is_refused(kinds, arguments, message):
    wire = chunk_message([1, 2, 3, 4])
    wire.kinds = kinds
    with pytest.raises(ChunkError, match=message):
        chunk_from_message(wire, *arguments)


def test_the_nearest_joint_state_is_looked_up():
    history = StateHistory()
    assert history.at(0, 10**9) is None
    for at in (100, 200, 300):
        history.add(at, f'at {at}')
    assert history.at(190, 20) == 'at 200'
    assert history.at(900, 20) is None
    history.add(50, 'at 50')
    assert history.at(200, 20) is None
