"""Waiting for new frames of all cameras."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping

from flashrt_ros.ingest.stream import Stream


class Fresh:
    """Whether a frame has come from each of these streams since the last ones were used, or expected anew."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._streams = dict(streams)
        self._lock = threading.Lock()
        self._missing = set(streams)
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

    def wait(self, timeout_s: float) -> bool:
        """Whether they have all come within so many seconds."""
        return self._all_there.wait(timeout_s)

    def _await(self, missing: set[str]) -> None:
        with self._lock:
            self._missing = missing
            self._update()

    def _note(self, name: str) -> None:
        with self._lock:
            self._missing.discard(name)
            self._update()

    def _update(self) -> None:
        if self._missing:
            self._all_there.clear()
        else:
            self._all_there.set()
