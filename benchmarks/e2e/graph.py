"""One setting, measured: cameras, policy node and streamer as processes of their own, over real DDS."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor

from benchmarks.e2e.listener import Listener
from benchmarks.e2e.setting import COMMANDS, JOINTS, VIEWS, Setting
from benchmarks.e2e.stages import latencies, percentiles
from demo.children import Family
from demo.lifecycle import ACTIVATE, CONFIGURE, Lifecycle

APPEAR_S, CONFIGURE_S, ACTIVATE_S = 30.0, 300.0, 30.0
SETTLE_S = 1.5
"""After the cameras have ended: the last diagnostics come within a second."""

WARM_UP_S = 2.0
"""Of the cameras, left out of the latencies."""


def measure(setting: Setting, config: Path, seconds: float, logs: Path) -> dict[str, Any]:
    """Start everything, wait for the cameras to end, and return what came of it."""
    logs.mkdir(parents=True, exist_ok=True)
    rclpy.init()
    node, executor, family = rclpy.create_node('bench'), SingleThreadedExecutor(), Family(logs)
    executor.add_node(node)
    listener = Listener(node, COMMANDS)
    try:
        _bring_up(node, executor, family, config)
        arguments = ['--views', *VIEWS, '--joints', *JOINTS, '--size', setting.size]
        arguments += ['--rate', str(setting.rate_hz), '--seconds', str(seconds)]
        camera = family.start('cameras', 'benchmarks.e2e.camera', arguments)
        while camera.running:
            executor.spin_once(timeout_sec=0.1)
            family.check(finished=[camera])
        family.check(finished=[camera])
        settled = time.monotonic() + SETTLE_S
        while time.monotonic() < settled:
            executor.spin_once(timeout_sec=0.1)
        sent = json.loads((logs / 'cameras.log').read_text().strip().splitlines()[-1])
        return _report(setting, listener, sent)
    finally:
        family.end()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


def _bring_up(node: Any, executor: SingleThreadedExecutor, family: Family, config: Path) -> None:
    common = ['--ros-args', '-p', f'config:={config}']
    modules = {'action_streamer': 'action_streamer', 'policy_node': 'policy_node'}
    children = [family.start(name, f'flashrt_ros.nodes.{module}', common) for name, module in modules.items()]
    nodes = [Lifecycle(node, executor, child, family.check) for child in children]
    for one in nodes:
        one.appear(APPEAR_S)
    for one in nodes:
        one.change(CONFIGURE, CONFIGURE_S)
    for one in nodes:
        one.change(ACTIVATE, ACTIVATE_S)


def _report(setting: Setting, listener: Listener, sent: dict[str, Any]) -> dict[str, Any]:
    recording = listener.recording
    begin_ns = min(stamp for stamp, _ in recording.stages.values()) if recording.stages else 0
    warm_ns = begin_ns + round(WARM_UP_S * 1e9)
    recording.stages = {key: found for key, found in recording.stages.items() if found[0] >= warm_ns}
    milliseconds = latencies(recording)
    received = {view: listener.counts.get(view, {}) for view in VIEWS}
    return {
        'setting': setting.name,
        **vars(setting),
        'cameras': sent,
        'received': received,
        'lost': {view: sent['sent'] - counts.get('received', 0) for view, counts in received.items()},
        'chunks': len(recording.chunks),
        'measured': len(milliseconds.get('total', ())),
        'blocked': len(recording.blocked),
        'commands': len(recording.commands),
        'streamer': listener.pace,
        'streamer_scheduling': listener.scheduling,
        'milliseconds': {name: percentiles(values) for name, values in milliseconds.items()},
    }
