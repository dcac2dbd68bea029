"""What all ways to take serialized messages into the slots of a ring have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from flashrt_ros.ingest.ring import FrameRing


class TakeError(Exception):
    """The middleware gave no message: too large for the memory, or a failure of its own."""


class SlotTake(ABC):
    """Takes the messages of one subscription into the slots of a ring.

    slot: where the next one goes; without, it is thrown away. Of the last message: received_ns: when the
    middleware had received it, 0 where it does not say; taken_ns: when it was in the slot, both by the system
    clock. stamp_ns: of its header, if it was of the form that was expected; None where nobody has looked.
    """

    def __init__(self, ring: FrameRing) -> None:
        self._ring, self._trouble = ring, ''
        self.received_ns = self.taken_ns = 0
        self.stamp_ns: int | None = None
        self.prepare()

    def prepare(self) -> None:
        """Look for a slot, before there is a message that waits for it."""
        self.slot = self._ring.free_slot()

    @abstractmethod
    def rest(self, seconds: float) -> None:
        """Leave Python to others for so long, or until the next message comes, where that can be told."""

    @abstractmethod
    def expect(self, head: bytes, mask: bytes, size: int) -> None:
        """The next message may be of the same form: `head` in front of its data, where `mask` is not 0, and
        so many bytes in all, or more. To be said after `prepare`."""

    def __call__(self) -> int | None:
        """Take one message into the slot; `prepare` has to follow.

        Returns its length in bytes, or None if there was nothing to take. Raises TakeError.
        """
        self._trouble = ''
        return self._take()

    @abstractmethod
    def _take(self) -> int | None:
        """`__call__` in one middleware's way."""

    def _grow(self, size: int) -> int | None:
        """The message has so many bytes and the slot fewer: the address of more memory, or None.

        Called by C, which no exception gets through.
        """
        self.slot = self.slot or self._ring.free_slot()  # which may be there by now
        if self.slot is None:
            self._trouble = 'every slot is in use'
            return None
        try:
            if self._ring.make_room(self.slot, size):
                return self.slot.address
            self._trouble = f'a message of {size} bytes is larger than ingest.max_frame_mib allows'
        except (MemoryError, RuntimeError) as error:  # torch raises the latter where memory cannot be pinned
            self._trouble = f'no memory for a message of {size} bytes ({error})'
        return None
