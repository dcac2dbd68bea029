"""The latest message of one input. Offering is cheap, a reference and two times; decoding comes later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flashrt_ros.frame import Frame


@dataclass
class Sample:
    """One message. stamp_ns: when it was measured, 0 if that is unknown; received_ns. Both ROS time."""

    message: Any
    stamp_ns: int
    received_ns: int
    taken: bool = False
    fault: str = ''
    """Why it cannot be used, once that was found out."""


@dataclass(frozen=True)
class StreamCounts:
    """Since the stream was made. unused: replaced by a newer message before anyone took it.

    rejected: messages that cannot be used, whether they were dropped on arrival or found out later.
    """

    received: int
    unused: int
    rejected: int


class Stream:
    """Latest message wins. One thread offers, another takes. For a camera it is a `FrameSink`.

    latency_s: from what happened to the stamp of the message, which is put back by as much.
    kept: called after a message was kept.
    last_drop: why the last message that was dropped on arrival cannot be read; '' while the newest could.
    """

    def __init__(self, name: str, topic: str, latency_s: float = 0.0) -> None:
        self.name, self.topic = name, topic
        self._latency_ns = round(latency_s * 1e9)
        self._lock = threading.Lock()
        self._latest: Sample | None = None
        self._received = self._unused = self._rejected = 0
        self.kept: Callable[[], None] = lambda: None
        self.last_drop = ''

    def offer(self, message: Any, received_ns: int) -> None:
        """Keep a message with a header as the latest."""
        self.put(message, stamp_ns(message.header.stamp), received_ns)

    def keep(self, frame: Frame) -> None:
        """See `FrameSink.keep`."""
        self.put(frame, frame.stamp_ns, frame.received_ns)

    def drop(self, reason: str) -> None:
        """See `FrameSink.drop`. What was the latest before stays it, and grows old."""
        with self._lock:
            self._received += 1
            self._rejected += 1
            self.last_drop = reason

    def put(self, message: Any, stamp_ns: int, received_ns: int) -> None:
        """Keep anything as the latest. stamp_ns: of the message, 0 if it has none; received_ns. ROS time."""
        sample = Sample(message, stamp_ns and stamp_ns - self._latency_ns, received_ns)
        with self._lock:
            self._received += 1
            self.last_drop = ''
            if self._latest is not None and not self._latest.taken:
                self._unused += 1
            self._latest = sample
        self.kept()

    def latest(self) -> Sample | None:
        return self._latest

    def take(self, sample: Sample) -> None:
        """Mark a sample as used by an inference."""
        with self._lock:
            sample.taken = True

    def reject(self, sample: Sample, fault: str) -> None:
        """Remember why a sample cannot be used; it counts once, however often it is looked at."""
        with self._lock:
            self._rejected += not sample.fault
            sample.taken, sample.fault = True, fault

    @property
    def counts(self) -> StreamCounts:
        with self._lock:
            return StreamCounts(self._received, self._unused, self._rejected)


def stamp_ns(stamp: Any) -> int:
    """builtin_interfaces/Time (or Duration) -> nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
