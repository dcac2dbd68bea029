"""When the middleware received the messages that are taken serialized; the package does not ask for it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flashrt_ros.nodes import serialized_take

_INFO_BYTES = 256
"""More than rmw_message_info_t has; it begins with the stamps of source and reception, int64 ns."""


class Receptions:
    """Of each thread the last one. Takes that are made inside `noted` are noted for good."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def last_ns(self) -> int:
        """System clock; of the message that this thread has taken last."""
        return int(self._thread.received_ns)

    @contextmanager
    def noted(self) -> Iterator[None]:
        libraries = serialized_take._libraries

        def wrapped() -> tuple[Any, Any]:
            rcl, utils = libraries()
            return _Noting(rcl, self._thread), utils

        serialized_take._libraries = wrapped
        try:
            yield
        finally:
            serialized_take._libraries = libraries


class _Noting:
    """librcl, of which only the take is used."""

    def __init__(self, rcl: ctypes.CDLL, thread: threading.local) -> None:
        self._take, self._thread = rcl.rcl_take_serialized_message, thread

    def rcl_take_serialized_message(
        self, subscription: int, message: Any, info: None, allocation: None
    ) -> int:
        buffer = (ctypes.c_int64 * (_INFO_BYTES // 8))()
        result = self._take(subscription, message, ctypes.byref(buffer), allocation)
        self._thread.received_ns = buffer[1]
        return int(result)
