"""One trial: a streamer process, fed by another, beside busy ones; when each command was written."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy

from benchmarks.streamer.setting import COMMANDS, PERIOD_NS
from demo.children import Child, Family
from demo.lifecycle import ACTIVATE, CONFIGURE, Lifecycle
from flashrt_ros.nodes.commands import MESSAGE_TYPES

WARM_UP_S = 2.0
STARTS_S, DRAIN_S = 60.0, 30.0
ALL = QoSProfile(depth=50_000, reliability=ReliabilityPolicy.RELIABLE)

# A policy on all cores: numbers, no waiting.
_BUSY = 'while True: sum(range(10000))'

_BIN_NS = 10_000


@dataclass(frozen=True)
class Variant:
    """tree: root of the checkout whose streamer runs. parameters: of the node, `key:=value`."""

    name: str
    tree: Path
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """late_ns: of every command, int64 [N]. rate_hz: commands a second. cpu_s: of the process, a command."""

    late_ns: np.ndarray
    rate_hz: float
    cpu_s: float


def lateness(written_ns: np.ndarray, period_ns: int) -> np.ndarray:
    """How long after its deadline each command was written [ns]; deadlines that were skipped have none.

    written_ns: int64 [N], ascending. The deadlines' phase is not known here: it is taken to be where the
    commands begin to be frequent, so 0 is the time that a command takes when nothing is in its way.
    """
    phases = written_ns % period_ns
    counts = np.bincount(phases // _BIN_NS, minlength=period_ns // _BIN_NS)
    first = int(counts.argmax())
    while counts[first - 1] > 0.02 * counts.max():
        first -= 1
    after = (written_ns - first * _BIN_NS) // period_ns
    late = np.empty_like(written_ns)
    served = int(after[0]) - 1
    for index, written in enumerate(written_ns.tolist()):
        # After a command the streamer waits for the next deadline that is not over. One that was over before
        # the command was out is served at once.
        due = served + 1
        # One that took less time than most may seem to be before its deadline: it served it all the same.
        begun = max(due, int(after[index - 1]) + 1) if index else due
        due = begun if first * _BIN_NS + begun * period_ns <= written + _BIN_NS else max(due, begun - 1)
        late[index] = written - (first * _BIN_NS + due * period_ns)
        served = due
    return late


def run(
    variant: Variant,
    config: Path,
    output_type: str,
    joint_rate_hz: float,
    chunk_rate_hz: float,
    busy: int,
    seconds: float,
    logs: Path,
) -> Found:
    """Start everything, listen for so long, and end everything."""
    logs.mkdir(parents=True, exist_ok=True)
    rclpy.init()
    node, executor, family = rclpy.create_node('bench'), SingleThreadedExecutor(), Family(logs)
    executor.add_node(node)
    written: list[int] = []

    def note(_: bytes, info: Mapping[str, Any]) -> None:
        written.append(info['source_timestamp'])

    node.create_subscription(MESSAGE_TYPES[output_type], COMMANDS, note, ALL, raw=True)
    try:
        streamer = _start(variant, family, config)
        lifecycle = Lifecycle(node, executor, streamer, family.check)
        lifecycle.appear(STARTS_S)
        lifecycle.change(CONFIGURE, STARTS_S)
        lifecycle.change(ACTIVATE, STARTS_S)
        rates = ['--joint-rate', str(joint_rate_hz), '--chunk-rate', str(chunk_rate_hz)]
        family.start('feed', 'benchmarks.streamer.feed', rates)
        _spin(executor, lambda: len(written) > 100, STARTS_S)
        with busy_processes(busy):
            _spin(executor, lambda: False, WARM_UP_S)
            begin_ns, before = time.time_ns(), cpu_ns(streamer.process.pid)
            _spin(executor, lambda: False, seconds)
            end_ns, spent_ns = time.time_ns(), cpu_ns(streamer.process.pid) - before
        family.check()
        # The listener has no priority: on busy cores it is behind by seconds.
        _spin(executor, lambda: written[-1] > end_ns, DRAIN_S)
        if written[-1] <= end_ns:
            raise RuntimeError(f'the listener has not caught up within {DRAIN_S:g} s: take fewer --seconds')
    finally:
        family.end()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    stamps = np.array(sorted(stamp for stamp in written if begin_ns <= stamp < end_ns))
    count, took_s = len(stamps), (end_ns - begin_ns) * 1e-9
    return Found(lateness(stamps, PERIOD_NS), count / took_s, spent_ns * 1e-9 / count)


def cpu_ns(process: int) -> int:
    """CPU time of all threads of a process."""
    tasks = Path(f'/proc/{process}/task').iterdir()
    return sum(int((task / 'schedstat').read_text().split()[0]) for task in tasks)


def _start(variant: Variant, family: Family, config: Path) -> Child:
    """The streamer of this variant's tree."""
    parameters = [word for one in (f'config:={config}', *variant.parameters) for word in ('-p', one)]
    paths, folder = os.environ.get('PYTHONPATH', ''), os.getcwd()
    os.environ['PYTHONPATH'] = f'{variant.tree}:{paths}'
    os.chdir(variant.tree)  # `python -m` looks there first
    try:
        return family.start(
            'action_streamer', 'flashrt_ros.nodes.action_streamer', ['--ros-args', *parameters]
        )
    finally:
        os.environ['PYTHONPATH'] = paths
        os.chdir(folder)


def _spin(executor: SingleThreadedExecutor, done: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        executor.spin_once(timeout_sec=0.1)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many that never wait, as long as the context lasts."""
    processes = [subprocess.Popen([sys.executable, '-S', '-c', _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
