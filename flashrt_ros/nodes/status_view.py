"""Listens to the nodes and prints what they report. See `flashrt_ros.cli.status`."""

from __future__ import annotations

import shutil
import sys
import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node

from flashrt_ros.control.status_text import STAGES, Latency, Report, in_trouble, status_lines
from flashrt_ros.msg import InferenceStats

REFRESH_S = 0.5
SETTLE_S = 1.2
"""A node reports every second: after so long from the first report each has."""

_CLEAR = '\x1b[H\x1b[J'


class StatusListener(Node):
    """Keeps the newest report of every name. Only what this package's nodes send is kept."""

    def __init__(self, namespace: str) -> None:
        super().__init__('flashrt_status')
        self._reports: dict[str, tuple[float, Report]] = {}
        self.latency: Latency | None = None
        self.create_subscription(DiagnosticArray, '/diagnostics', self._keep, 10)
        stats = f'{namespace.rstrip("/")}/inference_stats' if namespace else 'inference_stats'
        self.create_subscription(InferenceStats, stats, self._keep_stats, 10)

    def reports(self) -> list[Report]:
        now = time.monotonic()
        kept = sorted(self._reports.items())
        return [Report(r.name, r.level, r.message, r.values, now - at) for _, (at, r) in kept]

    def _keep(self, message: DiagnosticArray) -> None:
        for status in message.status:
            node = status.name.split(':')[0].rsplit('/', 1)[-1]
            if node in ('policy_node', 'action_streamer'):
                level = int.from_bytes(status.level, 'little')
                values = {pair.key: pair.value for pair in status.values}
                report = Report(status.name, level, status.message, values, 0.0)
                self._reports[status.name] = (time.monotonic(), report)

    def _keep_stats(self, message: InferenceStats) -> None:
        if not message.blocked:
            self.latency = Latency({stage: getattr(message, stage) for stage in STAGES}, message.total)


def watch(once: bool, wait_s: float, namespace: str = '') -> int:
    """Print until interrupted, or once. Returns 0, or 1 where something is in trouble (once)."""
    rclpy.init()
    listener = StatusListener(namespace)
    try:
        _first(listener, wait_s)
        while not once:
            _spin(listener, REFRESH_S)
            print(_CLEAR + '\n'.join(_lines(listener)), flush=True)
        print('\n'.join(_lines(listener)))
        return 1 if in_trouble(listener.reports()) else 0
    finally:
        listener.destroy_node()
        rclpy.try_shutdown()


def _lines(listener: StatusListener) -> list[str]:
    width = shutil.get_terminal_size((100, 40)).columns if sys.stdout.isatty() else 160
    return status_lines(listener.reports(), listener.latency, width)


def _first(listener: StatusListener, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not listener.reports() and time.monotonic() < deadline:
        rclpy.spin_once(listener, timeout_sec=0.1)
    if listener.reports():
        _spin(listener, SETTLE_S)


def _spin(listener: StatusListener, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        rclpy.spin_once(listener, timeout_sec=max(0.0, deadline - time.monotonic()))
