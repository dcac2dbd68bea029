"""Chunks as they come over the wire, whichever library decoded them."""

from types import SimpleNamespace

import numpy as np
import pytest

from flashrt_ros.control import ChunkError, chunk_from_message


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
    )


def test_chunk_is_read_row_by_row():
    chunk = chunk_from_message(chunk_message([1, 2, 3, 4]))
    assert chunk.actions.tolist() == [[1, 2], [3, 4]]
    assert (chunk.observed_ns, chunk.start_ns, chunk.step_ns) == (1_000_000_005, 1_000_000_005, 33_333_333)


def test_chunk_with_a_value_too_few():
    with pytest.raises(ChunkError, match='3 values and 2 kinds for 2 rows of 2 columns'):
        chunk_from_message(chunk_message([1, 2, 3]))


def test_chunk_of_a_kind_that_nobody_executes_yet():
    with pytest.raises(ChunkError, match='kind 3 are not supported'):
        chunk_from_message(chunk_message([1, 2, 3, 4], kind=3))
