"""DiagnosticStatus messages: rate and age of every input, pace of a loop, counters, and what is wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node

from flashrt_ros.ingest.stream import Stream
from flashrt_ros.nodes.loop import FixedRateLoop

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def status(
    name: str, hardware: str, level: bytes, summary: str, values: Mapping[str, Any]
) -> DiagnosticStatus:
    """One entry of the array. values: shown in this order, numbers with four significant digits."""
    pairs = [KeyValue(key=key, value=_shown(value)) for key, value in values.items()]
    return DiagnosticStatus(name=name, hardware_id=hardware, level=level, message=summary, values=pairs)


def pace_values(what: str, loop: FixedRateLoop) -> dict[str, Any]:
    """Rate and lateness of a loop as diagnostic values. what: the thing that comes at this rate."""
    pace = loop.meter.pace()
    if pace is None:
        return {f'{what} rate [Hz]': 'not running'}
    return {
        f'{what} rate [Hz]': pace.rate_hz,
        f'{what} late p50 [ms]': pace.late_p50_s * 1e3,
        f'{what} late p99 [ms]': pace.late_p99_s * 1e3,
        f'{what} late p99.9 [ms]': pace.late_p999_s * 1e3,
        f'{what} late max [ms]': pace.late_max_s * 1e3,
        f'{what} deadlines skipped': loop.skipped,
    }


class InputMonitor:
    """Rate of each input since the report before, its age now, and what is wrong with it.

    node: that subscribes to the inputs. hardware: name of the robot.
    """

    def __init__(self, node: Node, hardware: str) -> None:
        self._node, self._hardware = node, hardware
        self._before: dict[str, tuple[int, float]] = {}

    def report(self, stream: Stream, max_age_s: float, now_ns: int) -> DiagnosticStatus:
        """now_ns: ROS time."""
        publishers = self._node.count_publishers(stream.topic)
        counts, sample, now = stream.counts, stream.latest(), time.monotonic()
        received_before, at = self._before.get(stream.name, (0, now))
        self._before[stream.name] = (counts.received, now)
        values: dict[str, Any] = {'topic': stream.topic, 'publishers': publishers, 'max age [s]': max_age_s}
        if now > at:
            values['rate [Hz]'] = (counts.received - received_before) / (now - at)
        values.update(received=counts.received, rejected=counts.rejected, unused=counts.unused)
        name, hardware = f'{self._node.get_fully_qualified_name()}: input {stream.name}', self._hardware
        if sample is None:
            nothing = 'nothing received' if publishers else 'nobody publishes on its topic'
            return status(name, hardware, ERROR, stream.last_drop or nothing, values)
        age_s = (now_ns - sample.stamp_ns) * 1e-9
        values['age [s]'] = age_s
        if sample.fault:
            return status(name, hardware, ERROR, sample.fault, values)
        if age_s > max_age_s:
            return status(name, hardware, ERROR, f'{age_s:.3f} s old', values)
        if stream.last_drop:
            return status(name, hardware, WARN, f'the last one was dropped: {stream.last_drop}', values)
        if publishers > 1:
            mixed = f'{publishers} publishers on one topic: what they send is mixed'
            return status(name, hardware, WARN, mixed, values)
        return status(name, hardware, OK, 'arriving', values)


def _shown(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
