"""Managed node: action chunks in, commands at a fixed rate out. Runs in a process of its own, to keep time.

Subscribes to `action_chunk` and, to start from standstill, to the joint states; publishes on `output.topic`.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import JointState

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.control import ChunkError, Executor, ExecutorSettings, Limits, Phase
from flashrt_ros.errors import ObservationError
from flashrt_ros.ingest import JointMap
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.ingest.stream import Stream
from flashrt_ros.msg import ActionChunk
from flashrt_ros.nodes import diagnostics
from flashrt_ros.nodes.commands import MakeCommand, command_type
from flashrt_ros.nodes.edge_log import EdgeLog
from flashrt_ros.nodes.loop import FixedRateLoop
from flashrt_ros.nodes.main import run
from flashrt_ros.nodes.managed_node import ManagedNode
from flashrt_ros.nodes.messages import chunk_from_message
from flashrt_ros.nodes.qos import COMMAND, subscribe_latest

_SECTIONS = ('robot', 'joint_states', 'rates', 'output', 'executor')


class ActionStreamer(ManagedNode):
    """configure connects; activate starts the command loop; deactivate ends it."""

    def __init__(self, **options: Any) -> None:
        self._executor_lock = threading.Lock()
        self._chunks: Executor | None = None
        self._joints: JointMap | None = None
        self._state: Stream | None = None
        self._loop: FixedRateLoop | None = None
        self._make_command: MakeCommand | None = None
        self._publisher: Any = None
        self._inputs: list[Any] = []
        self._rejected = 0
        self._monitor = diagnostics.InputMonitor()
        super().__init__('action_streamer', _SECTIONS, **options)
        self._chunk_log = EdgeLog(self.get_logger(), 'chunk refused')
        self._motion_log = EdgeLog(self.get_logger(), 'no motion')

    def configure(self) -> None:
        config = self.config
        self._chunks = Executor(ExecutorSettings.of(config), Limits.of(config))
        self._joints, self._state = JointMap.of(config), Stream(STATE, config.joint_states.topic)
        period_ns = round(1e9 / config.rates.control_rate_hz)
        message_type, self._make_command = command_type(config.output.type, config.joint_names, period_ns)
        self._publisher = self.create_lifecycle_publisher(message_type, config.output.topic, COMMAND)
        self._loop = FixedRateLoop('commands', config.rates.control_rate_hz, self._tick, self.get_logger())
        self._inputs = [
            self.create_subscription(ActionChunk, 'action_chunk', self._take_chunk, COMMAND),
            subscribe_latest(self, JointState, config.joint_states.topic, self._keep_state),
        ]

    def activate(self) -> None:
        self._chunks.reset()
        self._loop.start(self.get_clock())

    def deactivate(self) -> None:
        if self._loop is not None:
            self._loop.stop()

    def teardown(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        if self._publisher is not None:
            self.destroy_lifecycle_publisher(self._publisher)
        self._inputs, self._publisher = [], None
        self._chunks = self._joints = self._state = self._loop = self._make_command = None

    def config_changed(self, config: RobotConfig) -> None:
        if self._chunks is not None:
            with self._executor_lock:
                self._chunks.configure(ExecutorSettings.of(config))

    def diagnostics(self) -> list[DiagnosticStatus]:
        robot, name = self.config.robot.name, self.get_fully_qualified_name()
        if self._chunks is None or self._loop is None:
            return [diagnostics.status(name, robot, diagnostics.OK, self.state, {})]
        now_ns, phase = self.get_clock().now().nanoseconds, self._chunks.phase
        values = {
            'state': self.state,
            'phase': phase.value,
            'wanted rate [Hz]': self.config.rates.control_rate_hz,
            **diagnostics.pace_values('command loop', self._loop.meter.pace()),
            'deadlines_skipped': self._loop.skipped,
            **vars(self._chunks.counts),
            'chunks_malformed': self._rejected,
        }
        trouble = self._loop.failure or self._motion_log.current or self._chunk_log.current
        level = diagnostics.WARN if trouble and self.state == 'active' else diagnostics.OK
        summary = trouble or (phase.value if self.state == 'active' else self.state)
        max_age_s = self.config.joint_states.max_age_s
        return [
            diagnostics.status(
                name, robot, diagnostics.ERROR if self._loop.failure else level, summary, values
            ),
            self._monitor.report(self._state, max_age_s, now_ns, name, robot),
        ]

    def _tick(self, now_ns: int) -> None:
        with self._executor_lock:
            positions, phase = self._chunks.command(now_ns), self._chunks.phase
        if positions is not None:
            self._publisher.publish(self._make_command(positions, now_ns))
        if phase is Phase.RUNNING:
            self._motion_log.clear()
        else:
            self._motion_log.trouble(phase, _PHASES[phase])

    def _take_chunk(self, message: ActionChunk) -> None:
        if self.state != 'active':
            return
        now_ns = self.get_clock().now().nanoseconds
        try:
            chunk = chunk_from_message(message).for_joints(self.config.joint_names)
        except ChunkError as error:
            self._rejected += 1
            self._chunk_log.trouble(error.what, str(error))
            return
        with self._executor_lock:
            refusal = self._chunks.accept(chunk, now_ns, self._measured(now_ns))
        if refusal:
            self._chunk_log.trouble(refusal, refusal)
        else:
            self._chunk_log.clear()

    def _keep_state(self, message: JointState) -> None:
        self._state.offer(message, self.get_clock().now().nanoseconds)

    def _measured(self, now_ns: int) -> np.ndarray | None:
        """Where the robot is, if that is known and recent; else the executor starts no motion and says so."""
        sample = self._state.latest()
        if sample is None or now_ns - sample.stamp_ns > self.config.joint_states.max_age_s * 1e9:
            return None
        try:
            positions = self._joints.positions(sample.message)
        except ObservationError as error:
            self._state.reject(sample, f'{error.what}. {error.fix}')
            return None
        self._state.take(sample)
        return positions


_PHASES = {
    Phase.IDLE: 'waiting for a chunk',
    Phase.HOLDING: 'the last chunk is over, holding the last command',
    Phase.STOPPED: 'no chunk came in time, safe action taken',
}


def main(args: list[str] | None = None) -> int:
    return run(ActionStreamer, args)


if __name__ == '__main__':
    sys.exit(main())
