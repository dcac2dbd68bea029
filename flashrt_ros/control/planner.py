"""One step of planning: an observation through the policy into a chunk on the time grid."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from flashrt_ros.control.chunk import Chunk, ChunkError
from flashrt_ros.ingest import JointMap, Taken
from flashrt_ros.policy import Policy


@dataclass(frozen=True)
class Plan:
    """A chunk, where the time went (stage -> seconds), and the inference as one interval [s]."""

    chunk: Chunk
    timings: Mapping[str, float]
    inference_s: float


class Planner:
    """Runs the policy and numbers its chunks. Row 0 is due when the observation was made."""

    def __init__(self, policy: Policy, joints: JointMap, action_rate_hz: float) -> None:
        self._policy, self._joints = policy, joints
        self._step_ns = round(1e9 / action_rate_hz)
        self.epoch = self.sequence = 0

    def begin_epoch(self, epoch: int) -> None:
        """Count from 0 again. epoch: higher than any that an executor may remember."""
        self.epoch, self.sequence = epoch, 0

    def plan(self, taken: Taken) -> Plan:
        """Infer once. Raises ObservationError if the policy refuses the input, ChunkError if it fails."""
        begin = time.perf_counter()
        prediction = self._policy.infer(taken.observation)
        inference_s = time.perf_counter() - begin
        if prediction.actions.shape[-1] != len(self._joints.names):
            width, joints = prediction.actions.shape[-1], len(self._joints.names)
            raise ChunkError(
                f'{width} columns for {joints} joints', self._policy.info.name, 'check robot.joints'
            )
        chunk = Chunk(
            policy=self._policy.info.name,
            names=self._joints.names,
            actions=self._joints.to_ros(prediction.actions),
            observed_ns=taken.stamp_ns,
            start_ns=taken.stamp_ns,
            step_ns=self._step_ns,
            epoch=self.epoch,
            sequence=self.sequence,
        )
        self.sequence += 1
        return Plan(chunk, prediction.timings, inference_s)
