"""Keeps other work of a process away from the moments at which the ticks of a loop are due.

Python runs one thread at a time: work that begins just before a deadline makes the tick late by what is left
of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flashrt_ros.control.pacing import UsualTime


class TickGate:
    """The loop tells it when it will wake; one other thread does its work in `between`.

    longest_ns: work is never expected to take longer, so that it has its turn however long it once took.
    into_ns: how far it may go on into the loop's own preparation for a tick. now_ns: the clock of the
    deadlines.
    """

    def __init__(
        self, longest_ns: int, into_ns: int = 0, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._longest_ns, self._into_ns, self._now_ns = longest_ns, into_ns, now_ns
        self._due_ns: int | None = None
        self._usual = UsualTime()
        self._awaited, self._passed = False, threading.Event()

    def expect(self, due_ns: int | None) -> None:
        """The tick before is over, and work for the next begins then; None: no more is to come."""
        self._due_ns = None if due_ns is None else due_ns + self._into_ns
        if self._awaited:
            self._passed.set()

    @contextmanager
    def between(self) -> Iterator[None]:
        """Around the work: at once where it will be over before the next tick, else behind that tick."""
        self._await_room()
        began_ns = self._now_ns()
        yield
        self._usual.note(self._now_ns() - began_ns)

    def _await_room(self) -> None:
        expected_ns = min(self._usual.ns, self._longest_ns)
        self._passed.clear()
        self._awaited = True
        due_ns = self._due_ns
        if due_ns is not None and due_ns - self._now_ns() < expected_ns:
            self._passed.wait((expected_ns + self._longest_ns) * 1e-9)
        self._awaited = False
