"""Slots are used over and over, and none while anybody still reads what is in it."""

import gc
import itertools
import threading
import time

import numpy as np
import pytest
import torch

from flashrt_ros.ingest.cdr import Layout
from flashrt_ros.ingest.ring import ALIGNMENT, SLOTS, FrameRing

OFFSET = 68
"""Of the pixels in a message."""


def write(ring, value, size=1000, sequence=1):
    """A frame whose bytes are all `value`, or None if no slot is free."""
    slot = ring.free_slot()
    if slot is None:
        return None
    assert ring.make_room(slot, OFFSET + size)
    slot.bytes(OFFSET + size)[:] = value
    return ring.frame(slot, Layout(OFFSET, size, 5, 'camera', 'mono8', size, 1, size), 6, sequence)


def test_a_frame_is_what_was_written():
    frame = write(FrameRing(), 7, sequence=3)
    assert (frame.data == 7).all()
    assert (frame.data.size, frame.encoding, frame.width, frame.step) == (1000, 'mono8', 1000, 1000)
    assert (frame.stamp_ns, frame.received_ns, frame.frame_id, frame.sequence) == (5, 6, 'camera', 3)
    assert frame.device_address == 0


def test_pixels_are_aligned_from_the_second_frame_on():
    ring = FrameRing()
    frames = [write(ring, 1), write(ring, 2), write(ring, 3)]
    assert [frame.data.ctypes.data % ALIGNMENT for frame in frames[1:]] == [0, 0]


@pytest.mark.parametrize(
    'derive',
    [
        lambda frame: frame,
        lambda frame: frame.data,
        lambda frame: frame.data[10:20],
        lambda frame: frame.data[:900].reshape(10, 30, 3)[:, ::-1],
        lambda frame: torch.from_numpy(frame.data)[5:].view(5, -1),
        lambda frame: memoryview(frame.data)[3:],
    ],
    ids=['frame', 'data', 'slice', 'picture', 'tensor', 'memoryview'],
)
def test_a_slot_is_not_given_away_while_anything_made_of_its_frame_is_alive(derive):
    ring = FrameRing(slots=2)
    frame = write(ring, 1)
    held = derive(frame)
    del frame
    for value in range(2, 20):
        assert write(ring, value) is not None
    assert np.unique(np.asarray(held.data if hasattr(held, 'encoding') else held)).tolist() == [1]
    del held
    gc.collect()
    both = write(ring, 1), write(ring, 2)
    assert None not in both


def test_without_a_free_slot_there_is_none_until_one_is_let_go():
    ring = FrameRing()
    held = [write(ring, value) for value in range(SLOTS)]
    assert write(ring, 9) is None
    assert [int(frame.data[0]) for frame in held] == list(range(SLOTS))
    held.pop(1)
    assert write(ring, 9) is not None


def test_a_slot_that_grows_leaves_its_old_memory_to_those_who_read_it():
    ring = FrameRing(slots=1)
    data = write(ring, 1).data
    del data
    small = write(ring, 1)
    assert write(ring, 2) is None
    begin = small.data.ctypes.data
    del small
    large = write(ring, 2, size=500_000)
    assert (large.data == 2).all()
    assert large.data.ctypes.data != begin
    assert ring.grown == 2


def test_sizes_that_change_settle_and_need_no_more_memory():
    ring = FrameRing()
    for _ in range(50):
        for size in (1_000, 400_000, 20_000):
            assert write(ring, 1, size) is not None
    assert ring.grown <= 2 * SLOTS


def test_beyond_its_limit_a_message_gets_no_room():
    ring = FrameRing(limit=5000)
    slot = ring.free_slot()
    assert ring.make_room(slot, 5000)
    assert not ring.make_room(slot, 5001)


def test_nothing_is_torn_while_one_thread_writes_and_another_reads():
    ring, latest, done = FrameRing(), [None], threading.Event()
    torn, seen = [], set()

    def read():
        while not done.is_set():
            frame = latest[0]
            if frame is not None:
                first = int(frame.data[0])
                torn.append(not (frame.data == first).all())
                seen.add(first)

    reader = threading.Thread(target=read)
    reader.start()
    missing, end = 0, time.monotonic() + 30.0
    for value in itertools.count():
        # On busy cores the reader may not have had its turn yet.
        if value >= 3000 and (len(seen) > 5 or time.monotonic() > end):
            break
        frame = write(ring, value % 251, size=200_000)
        missing += frame is None
        latest[0] = frame or latest[0]
        del frame
    done.set()
    reader.join()
    assert len(seen) > 5
    assert not any(torn)
    assert missing == 0
