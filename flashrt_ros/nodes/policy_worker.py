"""The work of the policy node at every tick: observe, infer, publish; or say why not."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from rclpy.clock import ROSClock
from rclpy.impl.rcutils_logger import RcutilsLogger

from flashrt_ros.control import Plan, Planner
from flashrt_ros.errors import FlashRTError
from flashrt_ros.ingest import Blocked, Ingest, Taken
from flashrt_ros.msg import ActionChunk, InferenceStats
from flashrt_ros.nodes.edge_log import EdgeLog
from flashrt_ros.nodes.messages import chunk_to_message
from flashrt_ros.nodes.stats import InferenceCounts, StatsWriter


class PolicyWorker:
    """Called by one thread. Every tick ends in one InferenceStats, whatever happens."""

    def __init__(
        self,
        ingest: Ingest,
        planner: Planner,
        writer: StatsWriter,
        counts: InferenceCounts,
        clock: ROSClock,
        logger: RcutilsLogger,
        publish_chunk: Callable[[ActionChunk], None],
        publish_stats: Callable[[InferenceStats], None],
    ) -> None:
        self._ingest, self._planner, self._writer, self.counts = ingest, planner, writer, counts
        self._clock, self._logger = clock, logger
        self._publish_chunk, self._publish_stats = publish_chunk, publish_stats
        self.trouble = EdgeLog(logger, 'no chunk')

    def tick(self, now_ns: int) -> None:
        """now_ns: ROS time."""
        outcome = self._ingest.observe(now_ns)
        if isinstance(outcome, Blocked):
            self.counts.ticks_blocked += 1
            self.trouble.trouble((outcome.refusal.input, outcome.refusal.kind), outcome.reason)
            self._publish_stats(self._writer.of_blocked(outcome, self._planner.epoch, self._planner.sequence))
            return
        plan = self._plan(outcome)
        if plan is not None:
            self.trouble.clear()
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

    def _publish(self, taken: Taken, plan: Plan) -> None:
        begin = time.perf_counter()
        now_ns = self._clock.now().nanoseconds
        self._publish_chunk(chunk_to_message(plan.chunk, now_ns))
        publish_s = time.perf_counter() - begin
        self.counts.chunks += 1
        total_s = (self._clock.now().nanoseconds - taken.stamp_ns) * 1e-9
        stats = self._writer.of_chunk(taken, plan, publish_s, total_s)
        self.counts.deadline_misses += stats.deadline_missed
        stats.chunks, stats.deadline_misses = self.counts.chunks, self.counts.deadline_misses
        self._publish_stats(stats)
