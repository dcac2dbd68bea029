"""rcl_publish_serialized_message on memory that stays where it is, as a camera driver in C++ publishes.

rclpy's `publish(bytes)` copies a picture into a string first, and holds Python's lock while it is sent.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_int, c_void_p

from rclpy.publisher import Publisher

from flashrt_ros.nodes.serialized_take import OK, SerializedMessage


class SerializedPublisher:
    """Publishes serialized messages by an rclpy publisher; they may be changed right afterwards."""

    def __init__(self, publisher: Publisher) -> None:
        self._handle = publisher.handle
        self._publish = ctypes.CDLL('librcl.so').rcl_publish_serialized_message
        self._publish.restype = c_int
        self._publish.argtypes = (c_void_p, POINTER(SerializedMessage), c_void_p)

    def publish(self, message: bytearray) -> None:
        buffer = (ctypes.c_char * len(message)).from_buffer(message)
        serialized = SerializedMessage(ctypes.addressof(buffer), len(message), len(message))
        with self._handle:
            result = self._publish(self._handle.pointer, byref(serialized), None)
        if result != OK:
            raise RuntimeError(f'rcl_publish_serialized_message failed (rcl_ret_t {result})')
