"""One step of planning: an observation through the policy into a chunk on the time grid, by a strategy.

Usable offline, without ROS and without the nodes:

    planner = Planner(policy, JointMap.of(config), config.rates.action_rate_hz, PlannerSettings.of(config))
    if planner.due(now_ns):
        plan = planner.plan(taken)                    # `taken` from Ingest.observe, or built by hand
        planner.published(plan, now_ns)               # when the executor gets it; counts the rows consumed
        planner.executing(entry.chunk, entry.begin_ns)   # what the executor made of it (Executor.entry)

Without the last call the planner goes by its own last chunk, as if it had been executed on the grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control.chunk import Chunk, ChunkError
from flashrt_ros.control.delay import DelayCounter, rows_consumed
from flashrt_ros.control.guidance import prefix_weights
from flashrt_ros.control.kinds import ActionKinds
from flashrt_ros.control.strategy import STRATEGIES, Strategy
from flashrt_ros.ingest import JointMap, Taken
from flashrt_ros.policy import Guidance, Pipelined, Policy, Prediction
from flashrt_ros.tracing import stage


@dataclass(frozen=True)
class PlannerSettings:
    """The executor section of the YAML as the planner needs it; see there."""

    strategy: Strategy = STRATEGIES['async']
    kinds: ActionKinds | None = None
    execution_rows: int | None = None
    clip: float = 5.0
    schedule: str = 'exp'
    guidance_rows: int | None = None
    delay_rows: int | None = None
    delay_window: int = 10

    @classmethod
    def of(cls, config: RobotConfig) -> PlannerSettings:
        executor = config.executor
        return cls(
            strategy=STRATEGIES[executor.strategy],
            kinds=ActionKinds.of(config),
            execution_rows=executor.execution_rows,
            clip=executor.guidance_clip,
            schedule=executor.guidance_schedule,
            guidance_rows=executor.guidance_rows,
            delay_rows=executor.delay_rows,
            delay_window=executor.delay_window,
        )


@dataclass(frozen=True)
class Plan:
    """A chunk, where the time went (stage -> seconds), and the inference as one interval [s].

    delay: rows that were foretold to be consumed while inferring. overlap: rows of the chunk in execution
    that guided this one; 0 where nothing did.
    """

    chunk: Chunk
    timings: Mapping[str, float]
    inference_s: float
    delay: int = 0
    overlap: int = 0


@dataclass
class PlannerCounts:
    """unguided: chunks that should have been guided, with nothing to go on from. delays_cut: delays longer
    than what is left of the old chunk, or than the prefix that the checkpoint was trained with: expect a
    seam.
    """

    unguided: int = 0
    delays_cut: int = 0


class Planner:
    """Runs the policy and numbers its chunks. Row 0 is due when the observation was made; vlash: later.

    latency_ns: how long every inference counts as, where time is not this machine's; None: as it took.
    """

    def __init__(
        self,
        policy: Policy,
        joints: JointMap,
        action_rate_hz: float,
        settings: PlannerSettings | None = None,
        latency_ns: int | None = None,
    ) -> None:
        self._policy, self._joints = policy, joints
        self.step_ns = round(1e9 / action_rate_hz)
        self._latency_ns = latency_ns
        self._settings = settings or PlannerSettings()
        self._kinds = self._settings.kinds or ActionKinds.positions(len(joints.names))
        self._executing: Chunk | None = None
        self.delay = DelayCounter(self._settings.delay_window, self._settings.delay_rows)
        self.counts = PlannerCounts()
        self.epoch = self.sequence = 0

    def configure(self, settings: PlannerSettings) -> None:
        """Apply other dynamic settings (clip, schedule, guidance_rows, delay_rows) from the next plan on."""
        self._settings = settings
        self.delay.fixed = settings.delay_rows

    def begin_epoch(self, epoch: int) -> None:
        """Count from 0 again, and go on from nothing. epoch: higher than any that an executor remembers."""
        self.epoch, self.sequence = epoch, 0
        self._executing = None
        self.delay.clear()

    def executing(self, chunk: Chunk | None, begin_ns: int = 0) -> None:
        """What the executor follows now, and when its row 0 counts as due; None while it follows nothing."""
        self._executing = None if chunk is None else replace(chunk, start_ns=begin_ns)

    def due(self, now_ns: int) -> bool:
        """Whether it is time for another inference. Only sync ever waits: for the end of the chunk before."""
        executing = self._executing
        if not self._settings.strategy.waits or executing is None:
            return True
        return now_ns >= executing.start_ns + executing.length_ns

    def plan(self, taken: Taken) -> Plan:
        """Infer once. Raises ObservationError if the policy refuses the input, ChunkError if it fails."""
        start_ns, delay = taken.stamp_ns, self.delay.foretold
        anchor = self._joints.to_ros(taken.observation.state)
        observation, guidance = taken.observation, None
        if self._settings.strategy.future:
            start_ns, anchor = self._future(taken, anchor, delay)
            observation = replace(observation, state=self._joints.to_checkpoint(anchor))
        if self._settings.strategy.guidance:
            guidance = self._guidance(start_ns, anchor, delay)
        begin = time.perf_counter()
        # A policy that cannot be guided is never asked to be, so it need not know the word.
        with stage('inference'):
            prediction = (
                self._policy.infer(observation)
                if guidance is None
                else self._policy.infer(observation, guidance=guidance)
            )
        inference_s = time.perf_counter() - begin
        return self._planned(prediction, inference_s, taken.stamp_ns, start_ns, anchor, delay, guidance)

    def submit(self, taken: Taken) -> Callable[[], Plan]:
        """Begin `plan`, and return what waits for it; for strategies whose chunks are not guided.

        A `Pipelined` policy may have two begun, to be waited for in that order; inference_s is then the sum
        of the stages. Others are asked at once. Raises, here or when called, as `plan`.
        """
        if not isinstance(self._policy, Pipelined):
            planned = self.plan(taken)
            return lambda: planned
        finish = self._policy.submit(taken.observation)

        def plan() -> Plan:
            prediction = finish()
            inference_s = sum(prediction.timings.values())
            anchor, delay = self._joints.to_ros(taken.observation.state), self.delay.foretold
            return self._planned(prediction, inference_s, taken.stamp_ns, taken.stamp_ns, anchor, delay, None)

        return plan

    def _planned(
        self,
        prediction: Prediction,
        inference_s: float,
        stamp_ns: int,
        start_ns: int,
        anchor: np.ndarray,
        delay: int,
        guidance: Guidance | None,
    ) -> Plan:
        """The next chunk of this epoch."""
        chunk = self._chunk(prediction.actions, anchor, stamp_ns, start_ns, guidance)
        self.sequence += 1
        measured_ns = round(inference_s * 1e9)
        self.delay.guess(measured_ns if self._latency_ns is None else self._latency_ns, self.step_ns)
        overlap = 0 if guidance is None else len(guidance.actions)
        return Plan(chunk, prediction.timings, inference_s, delay, overlap)

    def rehearsed(self, now_ns: int) -> Chunk:
        """A chunk made as `plan` and `published` make one, of actions that mean nothing; changes nothing."""
        width = len(self._joints.names)
        actions = np.zeros((self._policy.info.horizon, width), dtype=np.float32)
        chunk = self._chunk(actions, np.zeros(width), now_ns, now_ns, None)
        rows_consumed(self._executing, chunk, now_ns)
        return chunk

    def published(self, plan: Plan, now_ns: int) -> int:
        """The executor has the chunk from now on. Counts the rows consumed meanwhile, and returns them."""
        executing = self._executing
        rows = rows_consumed(executing, plan.chunk, now_ns)
        if executing is not None:
            self.delay.count(rows)
        self.executing(plan.chunk, self._begin(plan.chunk, now_ns))
        return rows

    def _begin(self, chunk: Chunk, now_ns: int) -> int:
        """When row 0 counts as due, as far as can be known here: from standstill, and in sync, at once."""
        executing = self._executing
        standing = executing is None or now_ns >= executing.start_ns + executing.length_ns
        if self._settings.strategy.waits or standing:
            return now_ns
        return chunk.start_ns

    def _future(self, taken: Taken, measured: np.ndarray, delay: int) -> tuple[int, np.ndarray]:
        """Start of the chunk after `delay` rows, and where the robot will be then.

        Its state at that time is the last action before, as in the code of VLASH (run.py of
        mit-han-lab/vlash, arXiv 2512.01031) for absolute joints, and as in the data: an action is the next
        state. Without a chunk in execution it stays where it is.
        """
        start_ns, executing = taken.stamp_ns + delay * self.step_ns, self._executing
        if executing is None or delay == 0:
            return taken.stamp_ns, measured
        left = executing.on_grid(start_ns - self.step_ns, self.step_ns)
        if len(left) == 0:
            return taken.stamp_ns, measured
        return start_ns, left[0]

    def _guidance(self, start_ns: int, anchor: np.ndarray, delay: int) -> Guidance | None:
        """What is left of the chunk in execution, on the grid of the new one; None where nothing is."""
        settings, info = self._settings, self._policy.info
        executing = self._executing  # the executor's word may come at any time
        left = np.zeros((0, 0))
        if executing is not None:
            left = executing.on_grid(start_ns, self.step_ns)[: info.horizon]
        longest = len(left)
        if settings.strategy.guidance == 'prefix':
            longest = min(longest, info.trained_prefix)
        if len(left) == 0:
            self.counts.unguided += executing is not None
            return None
        if delay == 0 and settings.strategy.guidance == 'prefix':
            return None
        self.counts.delays_cut += delay > longest
        frozen = min(delay, longest)
        wanted = frozen if settings.strategy.guidance == 'prefix' else len(left)
        actions = self._kinds.in_checkpoint_units(
            self._kinds.from_positions(left[:wanted], anchor), self._joints
        )
        if settings.strategy.guidance == 'prefix':
            return Guidance('prefix', actions)
        end = min(len(left), settings.guidance_rows or len(left))
        weights = prefix_weights(frozen, end, len(left), settings.schedule)
        return Guidance(settings.strategy.guidance, actions, weights, settings.clip)

    def _chunk(
        self,
        actions: np.ndarray,
        anchor: np.ndarray,
        observed_ns: int,
        start_ns: int,
        guidance: Guidance | None,
    ) -> Chunk:
        """The policy's actions as absolute positions on the grid."""
        name, joints = self._policy.info.name, self._joints
        if actions.shape[-1] != len(joints.names):
            raise ChunkError(
                f'{actions.shape[-1]} columns for {len(joints.names)} joints', name, 'check robot.joints'
            )
        positions = self._kinds.to_positions(self._kinds.in_ros_units(actions, joints), anchor)
        if self._settings.strategy.waits:
            positions = positions[: self._settings.execution_rows]
        return Chunk(
            policy=name,
            names=joints.names,
            actions=positions,
            observed_ns=observed_ns,
            start_ns=start_ns,
            step_ns=self.step_ns,
            epoch=self.epoch,
            sequence=self.sequence,
            prefix=len(guidance.actions) if guidance and guidance.method == 'prefix' else 0,
        )
