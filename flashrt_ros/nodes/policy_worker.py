"""The work of the policy node at every tick: observe, infer, publish; or say why not."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.clock import ROSClock
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.serialization import serialize_message

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.control import Plan, Planner, PlannerSettings
from flashrt_ros.control.chunk import ChunkError
from flashrt_ros.errors import FlashRTError
from flashrt_ros.ingest import Blocked, Ingest, Taken
from flashrt_ros.ingest.cdr import MalformedMessage, header_stamp_ns
from flashrt_ros.ingest.gates import Limits
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.msg import ActionChunk, InferenceStats
from flashrt_ros.nodes.clock import ros_now_ns
from flashrt_ros.nodes.edge_log import EdgeLog
from flashrt_ros.nodes.feedback import executing_chunk
from flashrt_ros.nodes.messages import chunk_to_message
from flashrt_ros.nodes.stats import InferenceCounts, StatsWriter
from flashrt_ros.nodes.unread_state import StateReader
from flashrt_ros.percentiles import percentiles
from flashrt_ros.policy import Policy, Rehearses, SeesAhead
from flashrt_ros.tracing import stage

RECENT = 1000
"""Inferences that percentiles are taken over."""


class PolicyWorker:
    """Every tick ends in one InferenceStats, whatever happens; but with sync a tick before the end of a chunk
    is none.

    `tick` is called by one thread; `keep_state` and `apply` by others.
    """

    def __init__(
        self,
        config: RobotConfig,
        policy: Policy,
        clock: ROSClock,
        logger: RcutilsLogger,
        publish_chunk: Callable[[ActionChunk], None],
        publish_stats: Callable[[InferenceStats], None],
    ) -> None:
        # A GPU decodes raw frames in no time, straight from the memory that they were taken into.
        self.ingest = Ingest(config, decode=policy.info.device == 'cpu')
        if isinstance(policy, SeesAhead):
            self.ingest.see_ahead = policy.see_ahead
        if isinstance(policy, Rehearses):
            policy.rehearse = self._rehearse
        logger.info(f'JPEGs: {self.ingest.decoding.text}')
        self.counts = InferenceCounts()
        self.trouble = EdgeLog(logger, 'no chunk')
        self._clock, self._reader = clock, StateReader()
        self._planner = Planner(
            policy, self.ingest.joints, config.rates.action_rate_hz, PlannerSettings.of(config)
        )
        self._wanted_epoch: int | None = None
        self._recent_s: deque[float] = deque(maxlen=RECENT)
        self._writer = StatsWriter(
            policy.info.name, 1.0 / config.rates.chunk_rate_hz, self.ingest, self.counts
        )
        self._publish_chunk, self._publish_stats = publish_chunk, publish_stats

    def keep_state(self, message: bytes, received_ns: int) -> None:
        """message: a serialized JointState. received_ns: ROS time. One call at a time."""
        state = self.ingest.streams[STATE]
        try:
            state.put(self._reader.unread(message), header_stamp_ns(message), received_ns)
        except MalformedMessage as error:
            state.drop(str(error))

    def apply(self, config: RobotConfig) -> None:
        """Use the dynamic values of a configuration from the next tick on."""
        self.ingest.limits, self.ingest.prompt = Limits.of(config), config.prompt
        self._planner.configure(PlannerSettings.of(config))

    def begin_epoch(self, epoch: int) -> None:
        """Chunks of earlier epochs must not be continued; from the next tick on."""
        self._wanted_epoch = epoch

    def keep_executing(self, message: ActionChunk) -> None:
        """What the streamer says that it follows."""
        try:
            chunk, begin_ns = executing_chunk(message)
            self._planner.executing(chunk and chunk.for_joints(self.ingest.joints.names), begin_ns)
        except ChunkError as error:
            self.trouble.trouble('executing', f'executing_chunk: {error}')

    def report(self) -> dict[str, Any]:
        """How long inference takes, over the last ones, and counters of the strategy; for people to read."""
        values: dict[str, Any] = {}
        recent = list(self._recent_s)
        if recent:
            p50, p99 = percentiles(recent, (50, 99))
            values = {'inference p50 [ms]': p50 * 1e3, 'inference p99 [ms]': p99 * 1e3}
        return {**values, 'delay [rows]': self._planner.delay.foretold, **vars(self._planner.counts)}

    def await_frames(self, in_time: bool) -> None:
        """Wait for a new frame of every camera: for the next ones if the tick is in time, and if it is late
        for any that no inference has used. Frames that stay away are too old in the end, as the tick says."""
        if in_time:
            self.ingest.fresh.expect()
        with stage('wait'):
            self.ingest.fresh.wait(max(self.ingest.limits.max_age_s.values()), self._see)

    def tick(self, now_ns: int) -> None:
        """now_ns: ROS time."""
        with stage('tick'):
            self._tick(now_ns)

    def _see(self) -> None:
        now_ns = ros_now_ns(self._clock)
        if self._planner.due(now_ns):
            self.ingest.see(now_ns)

    def _tick(self, now_ns: int) -> None:
        if self._wanted_epoch is not None:
            self._planner.begin_epoch(self._wanted_epoch)
            self._wanted_epoch = None
        if not self._planner.due(now_ns):
            return
        outcome = self.ingest.observe(now_ns)
        if isinstance(outcome, Blocked):
            self.counts.ticks_blocked += 1
            self.trouble.trouble((outcome.refusal.input, outcome.refusal.kind), outcome.reason)
            self._publish_stats(self._writer.of_blocked(outcome, self._planner.epoch, self._planner.sequence))
            return
        if not self._planner.due(outcome.stamp_ns):
            return  # what the cameras saw is from before the end of the motion
        plan = self._plan(outcome)
        if plan is not None:
            self.trouble.clear()
            with stage('publish'):
                self._publish(outcome, plan)

    def _plan(self, taken: Taken) -> Plan | None:
        """A failed inference is counted and told; the next one may be fine, so the node lives on."""
        try:
            return self._planner.plan(taken)
        except Exception as error:
            reason = str(error) if isinstance(error, FlashRTError) else traceback.format_exc()
            self.counts.inferences_failed += 1
            self.trouble.trouble(type(error), f'inference failed: {reason}')
            message = self._writer.of_failure(taken, reason, self._planner.epoch, self._planner.sequence)
            self._publish_stats(message)
            return None

    def _rehearse(self) -> None:
        """All that lies between actions and the sending of their chunk, without effect."""
        now_ns = ros_now_ns(self._clock)
        serialize_message(chunk_to_message(self._planner.rehearsed(now_ns), now_ns))

    def _publish(self, taken: Taken, plan: Plan) -> None:
        self._recent_s.append(plan.inference_s)
        begin, now_ns = time.perf_counter(), ros_now_ns(self._clock)
        message = chunk_to_message(plan.chunk, now_ns)
        message.delay = self._planner.published(plan, now_ns)
        self._publish_chunk(message)
        publish_s = time.perf_counter() - begin
        total_s = (ros_now_ns(self._clock) - taken.stamp_ns) * 1e-9
        self._publish_stats(self._writer.of_chunk(taken, plan, publish_s, total_s))
