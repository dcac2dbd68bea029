"""When the middleware received the messages that are taken serialized; frames do not say."""

from __future__ import annotations

import threading

from flashrt_ros.nodes.slot_take import SlotTake


class Receptions:
    """Of each thread the last one, of all takes that are made until `end`."""

    def __init__(self) -> None:
        self._thread, self._take = threading.local(), SlotTake.__call__

        def noting(one: SlotTake) -> int | None:
            size = self._take(one)
            self._thread.received_ns = one.received_ns
            return size

        SlotTake.__call__ = noting  # type: ignore[assignment, method-assign]

    def end(self) -> None:
        SlotTake.__call__ = self._take  # type: ignore[method-assign]

    def last_ns(self) -> int:
        """System clock; of the message that this thread has taken last."""
        return int(self._thread.received_ns)
