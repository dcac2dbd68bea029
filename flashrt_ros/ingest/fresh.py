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
        self._came_ns = dict.fromkeys(streams, 0)
        self._apart_ns = 0.0  # by which frames may be; 0 until that is known
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

        completed: called by the thread that brings the last of them, before the waiting one wakes; not called
        for frames that are there already.
        """
        with self._lock:
            self._completed = completed if self._missing else None
        there = self._all_there.wait(timeout_s)
        with self._lock:
            self._completed = None
        with self._completing:
            return there

    def _note(self, name: str) -> None:
        completed = self._came(name)
        try:
            if completed is not None:
                completed()
        finally:
            if completed is not None:
                self._completing.release()
                with self._lock:
                    self._tell()  # only now: who wakes wants Python's lock
            self._learn(name)

    def _came(self, name: str) -> Callable[[], None] | None:
        """What there is to do if this frame was the last that was missing; `_completing` is held then."""
        sample = self._streams[name].latest()
        with self._lock:
            if sample is not None:
                self._came_ns[name] = sample.received_ns
            self._missing.discard(name)
            self._missing |= self._outdated()
            completed = None if self._missing else self._completed
            if completed is None:
                self._tell()
            else:
                self._completed = None
                self._completing.acquire()
        return completed

    def _learn(self, name: str) -> None:
        """How far apart frames come, once the last one is under way."""
        with self._lock:
            self._received_ns[name].append(self._came_ns[name])
            if all(len(times) > 1 for times in self._received_ns.values()):
                distances = (b - a for times in self._received_ns.values() for a, b in pairwise(times))
                self._apart_ns = (1 - 1 / len(self._streams)) * max(distances) * _MARGIN

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
        if not self._apart_ns:
            return set()
        oldest = max(self._came_ns.values()) - self._apart_ns
        return {name for name, came in self._came_ns.items() if came < oldest}
