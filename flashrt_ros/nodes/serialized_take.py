"""rcl_take_serialized_message into memory of our own, by ctypes on the pointer of an rclpy subscription.

rclpy gives a message as Python objects or as `bytes`, each with copies that nobody reads. librcl is in the
process already, and the structures used here have been the same since ROS 2 Dashing; `unavailable` checks
them against the library all the same, so that another release falls back instead of writing astray.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.subscription import Subscription
from rclpy.utilities import get_rmw_implementation_identifier

from flashrt_ros.ingest.ring import FrameRing
from flashrt_ros.nodes.slot_take import SlotTake, TakeError

OK, TAKE_FAILED = 0, 401
"""rcl_ret_t: taken, and nothing was there to take."""

_INFO_BYTES = 256
"""More than rmw_message_info_t has; it begins with the stamps of source and reception, int64 ns."""


class _Allocator(ctypes.Structure):
    """rcutils_allocator_t."""

    _fields_ = (
        ('allocate', CFUNCTYPE(c_void_p, c_size_t, c_void_p)),
        ('deallocate', CFUNCTYPE(None, c_void_p, c_void_p)),
        ('reallocate', CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_void_p)),
        ('zero_allocate', CFUNCTYPE(c_void_p, c_size_t, c_size_t, c_void_p)),
        ('state', c_void_p),
    )


class SerializedMessage(ctypes.Structure):
    """rcutils_uint8_array_t, also called rcl_serialized_message_t."""

    _fields_ = (
        ('buffer', c_void_p),
        ('buffer_length', c_size_t),
        ('buffer_capacity', c_size_t),
        ('allocator', _Allocator),
    )


class SerializedTake(SlotTake):
    """Takes what has come; whoever calls it has waited for that."""

    def __init__(self, subscription: Subscription[Any], ring: FrameRing) -> None:
        self._handle = subscription.handle
        self._rcl, self._utils = _libraries()
        # Kept for as long as the library may call them.
        self._allocator = _allocator(self._grow)
        self._info = (ctypes.c_int64 * (_INFO_BYTES // 8))()
        super().__init__(ring)

    def prepare(self) -> None:
        """See `SlotTake.prepare`."""
        super().prepare()
        self._message = SerializedMessage(allocator=self._allocator)
        if self.slot is not None:
            self._message.buffer, self._message.buffer_capacity = self.slot.address, self.slot.capacity
        self._reference = byref(self._message)

    def rest(self, seconds: float) -> None:
        """Not at all: the next message could not end it."""

    def expect(self, head: bytes, mask: bytes, size: int) -> None:
        """Of no use here: rcl looks at nothing."""

    def _take(self) -> int | None:
        message = self._message
        try:
            with self._handle:
                pointer = self._handle.pointer
                result = self._rcl.rcl_take_serialized_message(pointer, self._reference, self._info, None)
        except InvalidHandle:  # destroyed between the executor's look and this one
            return None
        if result == TAKE_FAILED:
            return None
        if result != OK:
            self._utils.rcutils_reset_error()
            raise TakeError(self._trouble or f'the middleware failed (rcl_ret_t {result})')
        self.received_ns, self.taken_ns = int(self._info[1]), time.time_ns()
        return int(message.buffer_length)


def unavailable() -> str:
    """Why messages cannot be taken this way here; '' if they can."""
    if not hasattr(Subscription, 'handle'):
        return 'rclpy subscriptions have no handle'
    try:
        _, utils = _libraries()
        if (form := _serialization_format()) != 'cdr':
            return f"the middleware serializes as '{form}', not CDR"
        return '' if _layout_agrees(utils) else 'rcutils_uint8_array_t has another layout'
    except (OSError, AttributeError) as error:
        return f'librcl: {error}'


def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """librcl and librcutils, which rclpy has loaded."""
    rcl, utils = ctypes.CDLL('librcl.so'), ctypes.CDLL('librcutils.so')
    rcl.rcl_take_serialized_message.restype = c_int
    rcl.rcl_take_serialized_message.argtypes = (c_void_p, POINTER(SerializedMessage), c_void_p, c_void_p)
    utils.rcutils_uint8_array_init.restype = c_int
    utils.rcutils_uint8_array_init.argtypes = (POINTER(SerializedMessage), c_size_t, POINTER(_Allocator))
    utils.rcutils_uint8_array_resize.restype = c_int
    utils.rcutils_uint8_array_resize.argtypes = (POINTER(SerializedMessage), c_size_t)
    utils.rcutils_reset_error.restype, utils.rcutils_reset_error.argtypes = None, ()
    return rcl, utils


def _serialization_format() -> str:
    """As the middleware names it, which distributions load by rmw_implementation, and wheels link."""
    try:
        library = ctypes.CDLL('librmw_implementation.so')
    except OSError:
        library = ctypes.CDLL(f'lib{get_rmw_implementation_identifier()}.so')
    ask = library.rmw_get_serialization_format
    ask.restype, ask.argtypes = c_char_p, ()
    return (ask() or b'unknown').decode()


def _allocator(grow: Callable[[int], int | None]) -> _Allocator:
    """An allocator whose only memory is what `grow(size)` gives."""
    kinds: dict[str, Any] = dict(_Allocator._fields_)
    return _Allocator(
        kinds['allocate'](lambda size, state: grow(size)),
        kinds['deallocate'](lambda pointer, state: None),
        kinds['reallocate'](lambda pointer, size, state: grow(size)),
        kinds['zero_allocate'](lambda count, size, state: None),
        None,
    )


def _layout_agrees(utils: ctypes.CDLL) -> bool:
    """Let the library itself fill and grow the structure with our allocator, and look at what it did."""
    memory, sizes = ctypes.create_string_buffer(64), list[int]()

    def grow(size: int) -> int:
        sizes.append(size)
        return ctypes.addressof(memory)

    allocator = _allocator(grow)
    guarded = (SerializedMessage * 2)()
    before = bytes(guarded[1])
    first = utils.rcutils_uint8_array_init(byref(guarded[0]), 24, byref(allocator))
    second = utils.rcutils_uint8_array_resize(byref(guarded[0]), 48)
    message = guarded[0]
    return (
        (first, second, sizes) == (OK, OK, [24, 48])
        and (message.buffer, message.buffer_length, message.buffer_capacity)
        == (ctypes.addressof(memory), 0, 48)
        and bytes(guarded[1]) == before
    )
