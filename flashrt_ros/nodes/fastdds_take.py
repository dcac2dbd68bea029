"""Messages from Fast DDS into memory of our own, waited for and copied once by src/fastdds_reader.cpp.

Against rcl's way (`serialized_take`) it saves a copy, and between a message's arrival and its copy the wait
for a thread to wake and for Python's lock.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any

from rclpy.subscription import Subscription
from rclpy.utilities import get_rmw_implementation_identifier

from flashrt_ros.ingest.ring import FrameRing
from flashrt_ros.nodes.slot_take import SlotTake, TakeError

MIDDLEWARE = 'rmw_fastrtps_cpp'

WAIT_NS = 500_000_000
"""The longest that a take waits for a message."""

_VERSION = 3
_NOTHING, _TAKEN, _REFUSED, _UNREADABLE = range(4)


class _Message(ctypes.Structure):
    """`Message` of src/fastdds_reader.cpp."""

    _fields_ = (
        ('memory', c_void_p),
        ('capacity', c_size_t),
        ('head', c_char_p),
        ('mask', c_char_p),
        ('head_size', c_size_t),
        ('least', c_size_t),
        ('size', c_size_t),
        ('repeats', c_int64),
        ('stamp_ns', c_int64),
        ('received_ns', c_int64),
        ('taken_ns', c_int64),
    )


_Grow = CFUNCTYPE(c_void_p, c_size_t)


class FastDdsTake(SlotTake):
    """A take that waits for a message itself, `WAIT_NS` at most.

    Nobody else may take from the subscription, which has to live until `close`. Raises RuntimeError where
    `unavailable` says why.
    """

    def __init__(self, subscription: Subscription[Any], ring: FrameRing) -> None:
        self._library = _library()
        self._refill = _Grow(self._grow)  # kept for as long as the library may call it
        with subscription.handle:
            self._reader: int | None = self._library.flashrt_fastdds_open(subscription.handle.pointer)
        if self._reader is None:
            raise RuntimeError(f"'{subscription.topic_name}' is no subscription of {MIDDLEWARE}")
        super().__init__(ring)

    def prepare(self) -> None:
        """See `SlotTake.prepare`."""
        super().prepare()
        self._message = _Message()
        if self.slot is not None:
            self._message.memory, self._message.capacity = self.slot.address, self.slot.capacity
        self._reference = byref(self._message)

    def expect(self, head: bytes, mask: bytes, size: int) -> None:
        """See `SlotTake.expect`."""
        message = self._message
        message.head, message.mask, message.head_size, message.least = head, mask, len(head), size

    def rest(self, seconds: float) -> None:
        """See `SlotTake.rest`."""
        self._library.flashrt_fastdds_rest(self._reader, round(seconds * 1e9))

    def wake(self) -> None:
        """End the wait of the take that is under way, or of the next."""
        self._library.flashrt_fastdds_wake(self._reader)

    def close(self) -> None:
        """No take may be under way, and none may follow."""
        reader, self._reader = self._reader, None
        self._library.flashrt_fastdds_close(reader)

    def _take(self) -> int | None:
        outcome = self._library.flashrt_fastdds_take(self._reader, WAIT_NS, self._reference, self._refill)
        if outcome == _NOTHING:
            return None
        message = self._message
        self.received_ns, self.taken_ns = message.received_ns, message.taken_ns
        self.stamp_ns = message.stamp_ns if outcome == _TAKEN and message.repeats else None
        if outcome == _REFUSED:
            raise TakeError(self._trouble)
        if outcome == _UNREADABLE:
            raise TakeError('the message is not CDR, or there was no memory for it')
        return int(message.size)


def unavailable() -> str:
    """Why messages cannot be taken this way here; '' if they can."""
    if (middleware := get_rmw_implementation_identifier()) != MIDDLEWARE:
        return f'the middleware is {middleware}'
    try:
        version = _library().flashrt_fastdds_version()
    except (OSError, AttributeError) as error:
        return f'its library was not built: {error}'
    return '' if version == _VERSION else 'its library is of another version: build the package again'


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL('libflashrt_ros_fastdds.so')
    library.flashrt_fastdds_open.restype, library.flashrt_fastdds_open.argtypes = c_void_p, (c_void_p,)
    library.flashrt_fastdds_take.restype = c_int
    library.flashrt_fastdds_take.argtypes = (c_void_p, c_int64, POINTER(_Message), _Grow)
    library.flashrt_fastdds_rest.restype, library.flashrt_fastdds_rest.argtypes = None, (c_void_p, c_int64)
    for function in (library.flashrt_fastdds_wake, library.flashrt_fastdds_close):
        function.restype, function.argtypes = None, (c_void_p,)
    return library
