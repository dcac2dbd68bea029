"""Managed node: action chunks in, commands at a fixed rate out. Runs in a process of its own, to keep time.

Subscribes to `action_chunk` and, to start from standstill, to the joint states; publishes on `output.topic`.
"""

from __future__ import annotations

import sys
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import JointState

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.msg import ActionChunk
from flashrt_ros.nodes import diagnostics
from flashrt_ros.nodes.command_worker import CommandWorker
from flashrt_ros.nodes.commands import command_type
from flashrt_ros.nodes.loop import FixedRateLoop
from flashrt_ros.nodes.main import run
from flashrt_ros.nodes.managed_node import ManagedNode
from flashrt_ros.nodes.qos import COMMAND, subscribe_latest

_SECTIONS = ('robot', 'joint_states', 'rates', 'output', 'executor')


class ActionStreamer(ManagedNode):
    """configure connects; activate starts the command loop; deactivate ends it."""

    def __init__(self, **options: Any) -> None:
        self._worker: CommandWorker | None = None
        self._loop: FixedRateLoop | None = None
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._monitor: diagnostics.InputMonitor | None = None
        super().__init__('action_streamer', _SECTIONS, **options)

    def configure(self) -> None:
        config, logger, rate_hz = self.config, self.get_logger(), self.config.rates.control_rate_hz
        message_type, make = command_type(config.output.type, config.joint_names, round(1e9 / rate_hz))
        publisher = self.create_lifecycle_publisher(message_type, config.output.topic, COMMAND)
        self._outputs = [publisher]
        self._worker = CommandWorker(config, self.get_clock(), logger, make, publisher.publish)
        self._loop = FixedRateLoop('commands', rate_hz, self._worker.tick, logger)
        self._monitor = diagnostics.InputMonitor()
        self._inputs = [
            self.create_subscription(ActionChunk, 'action_chunk', self._take_chunk, COMMAND),
            subscribe_latest(self, JointState, config.joint_states.topic, self._worker.keep_state),
        ]

    def activate(self) -> None:
        self._worker.reset()
        self._loop.start(self.get_clock())

    def deactivate(self) -> None:
        if self._loop is not None:
            self._loop.stop()

    def teardown(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        self._inputs, self._outputs = [], []
        self._worker = self._loop = None

    def config_changed(self, config: RobotConfig) -> None:
        if self._worker is not None:
            self._worker.apply(config)

    def diagnostics(self) -> list[DiagnosticStatus]:
        robot, name = self.config.robot.name, self.get_fully_qualified_name()
        if self._worker is None or self._loop is None:
            return [diagnostics.status(name, robot, diagnostics.OK, self.state, {})]
        worker, now_ns = self._worker, self.get_clock().now().nanoseconds
        values = {
            'state': self.state,
            'phase': worker.phase.value,
            'wanted rate [Hz]': self.config.rates.control_rate_hz,
            **diagnostics.pace_values('command', self._loop),
            **worker.counts(),
        }
        trouble = self._loop.failure or worker.refused.current or worker.without_motion.current
        active = self.state == 'active'
        level = diagnostics.WARN if trouble and active else diagnostics.OK
        own = diagnostics.status(
            name,
            robot,
            diagnostics.ERROR if self._loop.failure else level,
            (trouble or worker.phase.value) if active else self.state,
            values,
        )
        max_age_s = self.config.joint_states.max_age_s
        return [own, self._monitor.report(worker.state, max_age_s, now_ns, name, robot)]

    def _take_chunk(self, message: ActionChunk) -> None:
        if self.state == 'active':
            self._worker.take_chunk(message)


def main(args: list[str] | None = None) -> int:
    return run(ActionStreamer, args)


if __name__ == '__main__':
    sys.exit(main())
