"""Waiting for new frames of all cameras that belong together."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Mapping
from itertools import pairwise

from flashrt_ros.ingest.stream import Stream

_WINDOW = 8
"""Frames whose distances say how far apart those of a camera come."""

_MARGIN = 1.1
"""By which the share of a period is longer that frames may be apart: they come unevenly."""


class Fresh:
    """Whether a frame has come from each of these streams since the last ones were used, or expected anew.

    Frames belong together when none came long before the newest: cameras that see the same moment must not be
    paired a frame apart, which a wait that begins between the two would do from then on. Of n cameras at any
    phases the last frames are at some moment of every period within (1 - 1/n) of the longest period, so no
    phase waits in vain. Times are those of reception: stamps of different drivers may differ by anything.
    """

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._streams = dict(streams)
        self._lock, self._completing = threading.Lock(), threading.Lock()
        self._completed: Callable[[], None] | None = None
        self._missing = set(streams)
        self._received_ns = {name: deque[int](maxlen=_WINDOW) for name in streams}
        self._periods_ns = dict.fromkeys(streams, 0)
        self._all_there = threading.Event()
        for name, stream in streams.items():
            stream.kept = functools.partial(self._note, name)

    def expect(self) -> None:
        """Frames that are there already count no more."""
        self._await(set(self._streams))

    def used(self) -> None:
        """Those that were taken count no more; what came meanwhile does."""
        latest = {name: stream.latest() for name, stream in self._streams.items()}
        self._await({name for name, sample in latest.items() if sample is None or sample.taken})

    def wait(self, timeout_s: float, completed: Callable[[], None] | None = None) -> bool:
        """Whether they have all come within so many seconds.

        completed: called by the thread that brings the last of them, while the waiting one still wakes, which
        returns behind it; not called for frames that are there already.
        """
        with self._lock:
            self._completed = completed if self._missing else None
        there = self._all_there.wait(timeout_s)
        with self._lock:
            self._completed = None
        with self._completing:
            return there

    def _note(self, name: str) -> None:
        sample = self._streams[name].latest()
        with self._lock:
            if sample is not None:
                times = self._received_ns[name]
                times.append(sample.received_ns)
                self._periods_ns[name] = max((b - a for a, b in pairwise(times)), default=0)
            self._missing = (self._missing - {name}) | self._outdated()
            completed = None if self._missing else self._completed
            if completed is None:
                self._tell()
                return
            self._completed = None
            self._completing.acquire()
            self._tell()
        try:
            completed()
        finally:
            self._completing.release()

    def _await(self, missing: set[str]) -> None:
        with self._lock:
            self._missing = missing | self._outdated()
            self._tell()

    def _tell(self) -> None:
        if self._missing:
            self._all_there.clear()
        else:
            self._all_there.set()

    def _outdated(self) -> set[str]:
        """Streams whose last frame came too long before the newest to belong to it."""
        if any(len(times) < 2 for times in self._received_ns.values()):
            return set()
        came = {name: times[-1] for name, times in self._received_ns.items()}
        longest_ns = max(self._periods_ns.values())
        if not longest_ns:
            return set()
        apart_ns = (1 - 1 / len(self._streams)) * longest_ns * _MARGIN
        newest = max(came.values())
        return {name for name, received in came.items() if newest - received > apart_ns}
