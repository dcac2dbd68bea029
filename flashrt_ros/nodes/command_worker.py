"""The work of the streamer: chunks and joint states in, a command at every tick out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.clock import ROSClock
from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import JointState

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.control import (
    ChunkError,
    Executor,
    ExecutorSettings,
    Limits,
    Phase,
    chunk_from_message,
)
from flashrt_ros.errors import ObservationError
from flashrt_ros.ingest import JointMap
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.ingest.stream import Stream
from flashrt_ros.msg import ActionChunk
from flashrt_ros.nodes.commands import MakeCommand
from flashrt_ros.nodes.edge_log import EdgeLog

_WITHOUT_MOTION = {
    Phase.IDLE: 'waiting for a chunk',
    Phase.HOLDING: 'the last chunk is over, holding the last command',
    Phase.STOPPED: 'no chunk came in time, safe action taken',
}


class CommandWorker:
    """`tick` is called by the command thread, everything else by the node's executor."""

    def __init__(
        self,
        config: RobotConfig,
        clock: ROSClock,
        logger: RcutilsLogger,
        make_command: MakeCommand,
        publish: Callable[[Any], None],
    ) -> None:
        self.state = Stream(STATE, config.joint_states.topic)
        self.refused = EdgeLog(logger, 'chunk refused')
        self.without_motion = EdgeLog(logger, 'no motion')
        self.malformed = 0
        self._max_age_s = config.joint_states.max_age_s
        self._joints = JointMap.of(config)
        self._executor = Executor(ExecutorSettings.of(config), Limits.of(config))
        self._lock = threading.Lock()
        self._clock, self._make_command, self._publish = clock, make_command, publish

    @property
    def phase(self) -> Phase:
        return self._executor.phase

    def counts(self) -> dict[str, Any]:
        """Counters since configure, for people to read."""
        with self._lock:
            counts = dict(vars(self._executor.counts))
        refused = counts.pop('chunks_refused')
        counts['chunks_refused'] = ', '.join(f'{reason}: {count}' for reason, count in refused.items()) or 0
        return {**counts, 'chunks_malformed': self.malformed}

    def apply(self, config: RobotConfig) -> None:
        """Use the dynamic values of a configuration from now on."""
        self._max_age_s = config.joint_states.max_age_s
        with self._lock:
            self._executor.configure(ExecutorSettings.of(config))

    def reset(self) -> None:
        """Forget all motion: the next chunk starts from standstill."""
        with self._lock:
            self._executor.reset()

    def keep_state(self, message: JointState) -> None:
        self.state.offer(message, self._clock.now().nanoseconds)

    def take_chunk(self, message: ActionChunk) -> None:
        """Execute a chunk from now on, or say why not."""
        now_ns = self._clock.now().nanoseconds
        try:
            chunk = chunk_from_message(message).for_joints(self._joints.names)
        except ChunkError as error:
            self.malformed += 1
            self.refused.trouble(error.what, str(error))
            return
        with self._lock:
            refusal = self._executor.accept(chunk, now_ns, self._measured(now_ns))
        if refusal:
            self.refused.trouble(refusal, refusal)
        else:
            self.refused.clear()

    def tick(self, now_ns: int) -> None:
        """now_ns: ROS time."""
        with self._lock:
            positions, phase = self._executor.command(now_ns), self._executor.phase
        if positions is not None:
            self._publish(self._make_command(positions, now_ns))
        if phase is Phase.RUNNING:
            self.without_motion.clear()
        else:
            self.without_motion.trouble(phase, _WITHOUT_MOTION[phase])

    def _measured(self, now_ns: int) -> np.ndarray | None:
        """Where the robot is, if that is known and recent; else the executor starts no motion and says so."""
        sample = self.state.latest()
        if sample is None or now_ns - sample.stamp_ns > self._max_age_s * 1e9:
            return None
        try:
            positions = self._joints.positions(sample.message)
        except ObservationError as error:
            self.state.reject(sample, f'{error.what}. {error.fix}')
            return None
        self.state.take(sample)
        return positions
