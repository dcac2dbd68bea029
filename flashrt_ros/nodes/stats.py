"""InferenceStats: one message for each chunk, and one for each tick that was refused."""

from __future__ import annotations

from dataclasses import dataclass

from flashrt_ros.control import Plan
from flashrt_ros.ingest import Blocked, Ingest, Taken
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.msg import InferenceStats
from flashrt_ros.nodes.messages import to_time
from flashrt_ros.policy import STAGES


@dataclass
class InferenceCounts:
    """Since the node was configured."""

    chunks: int = 0
    deadline_misses: int = 0
    ticks_blocked: int = 0
    inferences_failed: int = 0


class StatsWriter:
    """Fills the messages of one policy. deadline_s: the chunk period."""

    def __init__(self, policy: str, deadline_s: float, ingest: Ingest, counts: InferenceCounts) -> None:
        self._policy, self._deadline_s = policy, deadline_s
        self._ingest, self._counts = ingest, counts

    def of_chunk(self, taken: Taken, plan: Plan, publish_s: float, total_s: float) -> InferenceStats:
        """Counts the chunk, too. publish_s: building and publishing it. total_s: from sensor stamp."""
        missed = plan.inference_s > self._deadline_s
        self._counts.chunks += 1
        self._counts.deadline_misses += missed
        message = self._of_taken(taken, plan.chunk.epoch, plan.chunk.sequence)
        for stage in STAGES:
            setattr(message, stage, float(plan.timings.get(stage, 0.0)))
        message.publish, message.total = publish_s, total_s
        message.inference = plan.inference_s
        message.deadline_missed = missed
        return message

    def of_failure(self, taken: Taken, reason: str, epoch: int, sequence: int) -> InferenceStats:
        """The observation was taken, but no chunk came of it."""
        message = self._of_taken(taken, epoch, sequence)
        message.blocked = reason
        return message

    def of_blocked(self, blocked: Blocked, epoch: int, sequence: int) -> InferenceStats:
        message = self._common(blocked.now_ns, epoch, sequence)
        message.blocked = blocked.reason
        message.inputs, message.ages = list(blocked.ages_s), list(blocked.ages_s.values())
        return message

    def _of_taken(self, taken: Taken, epoch: int, sequence: int) -> InferenceStats:
        message = self._common(taken.stamp_ns, epoch, sequence)
        message.inputs, message.ages = list(taken.ages_s), list(taken.ages_s.values())
        message.transport, message.wait = taken.transport_s, taken.wait_s
        message.take, message.skew = taken.take_s, taken.skew_s
        return message

    def _common(self, stamp_ns: int, epoch: int, sequence: int) -> InferenceStats:
        message = InferenceStats(
            policy=self._policy, epoch=epoch, sequence=sequence, deadline=self._deadline_s
        )
        message.header.stamp = to_time(stamp_ns)
        message.chunks, message.deadline_misses = self._counts.chunks, self._counts.deadline_misses
        message.ticks_blocked = self._counts.ticks_blocked
        message.inferences_failed = self._counts.inferences_failed
        counts = {name: stream.counts for name, stream in self._ingest.streams.items()}
        message.inputs_rejected = sum(count.rejected for count in counts.values())
        message.frames_unused = sum(count.unused for name, count in counts.items() if name != STATE)
        return message
