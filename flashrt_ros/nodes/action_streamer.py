"""Managed node: action chunks in, commands at a fixed rate out. Runs in a process of its own, to keep time.

Subscribes to `action_chunk` and, to start from standstill, to the joint states; publishes on
`output.topic`, and on `executing_chunk` what it follows. Services ~/hold, ~/resume, ~/estop and ~/reset
stop it and let it go on.
"""

from __future__ import annotations

import sys
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import JointState

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.control import Limits
from flashrt_ros.msg import ActionChunk
from flashrt_ros.nodes import diagnostics
from flashrt_ros.nodes.command_worker import CommandWorker
from flashrt_ros.nodes.commands import MESSAGE_TYPES, command_maker
from flashrt_ros.nodes.description import described_limits
from flashrt_ros.nodes.loop import FixedRateLoop
from flashrt_ros.nodes.main import run
from flashrt_ros.nodes.managed_node import ManagedNode
from flashrt_ros.nodes.operator import OperatorInterface
from flashrt_ros.nodes.output import ChunkOutput, Publish, StepOutput
from flashrt_ros.nodes.qos import COMMAND, subscribe_latest

_SECTIONS = ('robot', 'joint_states', 'rates', 'output', 'executor', 'safety', 'tracing')

WATCH_S = 0.02
"""How often the watchdog looks, on real time, whether the robot must stop though no tick comes."""


class ActionStreamer(ManagedNode):
    """configure connects; activate starts the command loop; deactivate ends it, with the robot at rest."""

    def __init__(self, **options: Any) -> None:
        self._worker: CommandWorker | None = None
        self._loop: FixedRateLoop | None = None
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._operator: OperatorInterface | None = None
        self._watchdog: Any = None
        self._monitor: diagnostics.InputMonitor | None = None
        super().__init__('action_streamer', _SECTIONS, **options)

    def configure(self) -> None:
        config, logger, rate_hz = self.config, self.get_logger(), self.config.rates.control_rate_hz
        limits = Limits.of(config, described_limits(self, config))
        publisher = self.create_lifecycle_publisher(
            MESSAGE_TYPES[config.output.type], config.output.topic, COMMAND
        )
        executing = self.create_lifecycle_publisher(ActionChunk, 'executing_chunk', COMMAND)
        self._outputs = [publisher, executing]
        self._worker = CommandWorker(
            config,
            limits,
            self.get_clock(),
            logger,
            _output(config, publisher.publish),
            executing.publish,
            self._tell_stopped,
        )
        self._loop = FixedRateLoop('commands', rate_hz, self._worker.tick, logger)
        self._monitor = diagnostics.InputMonitor(self, config.robot.name)
        self._inputs = [
            self.create_subscription(ActionChunk, 'action_chunk', self._take_chunk, COMMAND),
            subscribe_latest(self, JointState, config.joint_states.topic, self._worker.keep_state),
        ]
        self._operator = OperatorInterface(self, config, self._act, self._worker.deadman)
        self._watchdog = self.create_timer(
            WATCH_S, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def activate(self) -> None:
        self._worker.begin()
        self._loop.start(self.get_clock())

    def deactivate(self) -> None:
        if self._loop is None:
            return
        self._loop.stop()
        if self.state == 'active':
            self._worker.come_to_rest(self.ending or 'deactivated')

    def teardown(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        if self._watchdog is not None:
            self.destroy_timer(self._watchdog)
        if self._operator is not None:
            self._operator.destroy()
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        self._inputs, self._outputs = [], []
        self._worker = self._loop = self._operator = self._watchdog = None

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
            'strategy': self.config.executor.strategy,
            'wanted rate [Hz]': self.config.rates.control_rate_hz,
            **diagnostics.pace_values('command', self._loop),
            **worker.report(),
        }
        trouble = self._loop.failure or worker.trouble
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
        return [own, self._monitor.report(worker.state, max_age_s, now_ns)]

    def _take_chunk(self, message: ActionChunk) -> None:
        if self.state == 'active':
            self._worker.take_chunk(message)

    def _watch(self) -> None:
        if self.state == 'active':
            self._worker.watch(self._loop.failure)

    def _act(self, what: str) -> tuple[bool, str]:
        """An emergency stop is kept for later also where nothing moves yet; the rest needs an active node."""
        if self.state != 'active' and what in ('hold', 'resume'):
            return False, f'the node is {self.state}'
        return self._worker.act(what)

    def _tell_stopped(self, stopped: bool) -> None:
        if self._operator is not None:
            self._operator.tell_stopped(stopped)


def _output(config: RobotConfig, publish: Publish) -> StepOutput | ChunkOutput:
    period_ns = round(1e9 / config.rates.control_rate_hz)
    if config.output.mode == 'chunk':
        return ChunkOutput(config.joint_names, period_ns, publish)
    return StepOutput(command_maker(config.output.type, config.joint_names, period_ns), publish)


def main(args: list[str] | None = None) -> int:
    return run(ActionStreamer, args)


if __name__ == '__main__':
    sys.exit(main())
