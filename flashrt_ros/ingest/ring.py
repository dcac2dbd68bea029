"""Memory that frames are written into, used over and over, and never while somebody still reads it.

A slot is in use for as long as anything refers to the frame that was made of it (see `Frame`): Python's own
reference counting is the lease, so that nobody can forget to give a slot back, and a picture that is being
read, resized or uploaded is never overwritten.

torch is imported where memory is pinned, and only there: streamer, robot and recorder import this module,
too, and without torch they are up sooner.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.frame import Frame
from flashrt_ros.ingest.cdr import Layout

ALIGNMENT = 256
"""Pixels begin at a multiple of this, so that a GPU reads them in whole lines; from the second frame on."""

SLOTS = 6
"""One being written, the latest, one that inference reads, one that it read before, and two to spare."""

LIMIT = 64 << 20
"""Most bytes of one message; a 4K picture of four bytes a pixel has half as many."""

_GRAIN = 1 << 16
"""Slots grow in steps of this, so that a few bytes more need no new memory."""

Memory = Callable[[int], np.ndarray]
"""Makes uint8 [size]."""


def plain_memory(size: int) -> np.ndarray:
    return np.empty(size, np.uint8)


def pinned_memory(size: int) -> np.ndarray:
    """Page-locked and mapped: with unified addressing the GPU reads it at the CPU's own address."""
    import torch

    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()


def ring_of(config: RobotConfig) -> FrameRing:
    """For one camera, in memory that the GPU reads where the policy runs on one."""
    limit = config.ingest.max_frame_mib << 20
    if config.policy.device == 'cuda' and _has_gpu():
        return FrameRing(pinned_memory, mapped=True, limit=limit)
    return FrameRing(limit=limit)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class _Lease:
    """What every array made of one frame goes back to; its end frees the slot."""

    def __init__(self, memory: np.ndarray, address: int, size: int) -> None:
        self.memory = memory  # a slot that grows leaves its old memory to those who still read it
        self.__array_interface__ = {
            'shape': (size,),
            'typestr': '|u1',
            'data': (address, False),
            'version': 3,
        }


class Slot:
    """A piece of memory for one message at a time, which begins at `begin`."""

    def __init__(self) -> None:
        self.begin = 0
        self.lease: Callable[[], _Lease | None] = lambda: None
        self.hold(np.empty(0, np.uint8))

    def hold(self, memory: np.ndarray) -> None:
        """Use other memory from now on."""
        self.memory, self._base = memory, int(memory.ctypes.data)

    def align(self, offset: int) -> None:
        """Let what is written at `offset` begin at a multiple of the alignment."""
        self.begin = -(self._base + offset) % ALIGNMENT

    @property
    def address(self) -> int:
        """Where the message is to be written."""
        return self._base + self.begin

    @property
    def capacity(self) -> int:
        """Bytes from `address` on."""
        return max(0, self.memory.size - self.begin)

    def bytes(self, size: int) -> np.ndarray:
        """The first bytes from `address` on."""
        return self.memory[self.begin : self.begin + size]


class FrameRing:
    """Slots of one camera. One thread writes; any thread may read frames and let them go.

    memory: makes the memory of the slots. mapped: whether a GPU can read it. limit: most bytes of a message.
    grown: how often a slot had to get larger memory.
    """

    def __init__(
        self, memory: Memory = plain_memory, mapped: bool = False, slots: int = SLOTS, limit: int = LIMIT
    ) -> None:
        self._memory, self._mapped, self._limit = memory, mapped, limit
        self._slots = [Slot() for _ in range(slots)]
        self._offset = 0
        self.grown = 0

    def free_slot(self) -> Slot | None:
        """A slot that nobody reads, or None if all are in use."""
        slot = next((slot for slot in self._slots if slot.lease() is None), None)
        if slot is not None:
            slot.align(self._offset)
        return slot

    def make_room(self, slot: Slot, size: int) -> bool:
        """Make the slot hold so many bytes; what was in it is lost. False if they are more than the limit."""
        if size > self._limit:
            return False
        if size > slot.capacity:
            slot.hold(self._memory(-(-(size + ALIGNMENT) // _GRAIN) * _GRAIN))
            slot.align(self._offset)
            self.grown += 1
        return True

    def frame(self, slot: Slot, layout: Layout, received_ns: int, sequence: int) -> Frame:
        """The message that was written into the slot, whose memory it holds from now on."""
        self._offset = layout.offset
        address = slot.address + layout.offset
        lease = _Lease(slot.memory, address, layout.size)
        slot.lease = weakref.ref(lease)
        return Frame(
            data=np.asarray(lease),
            encoding=layout.encoding,
            width=layout.width,
            height=layout.height,
            step=layout.step,
            is_bigendian=layout.is_bigendian,
            stamp_ns=layout.stamp_ns,
            received_ns=received_ns,
            frame_id=layout.frame_id,
            sequence=sequence,
            device_address=address if self._mapped else 0,
        )
