"""The action streamer on the bag's time: chunks in, the commands that it would have sent out."""

from __future__ import annotations

from collections import deque

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control import Chunk, Entry, Executor, ExecutorSettings, Limits
from flashrt_ros.evaluation.replay.track import Track
from flashrt_ros.evaluation.replay.watch import SILENCE_NS


class ReplayedRobot:
    """`advance` to a time before telling what happened at it.

    commands: when and what was sent. clamps: joints changed by [position, motion] limits then; motion: step,
    velocity and acceleration.
    seams: numbers of the commands that were the first after a new chunk. refused: reason -> chunks.
    """

    def __init__(self, config: RobotConfig, begin_ns: int) -> None:
        self._executor = Executor(ExecutorSettings.of(config), Limits.of(config))
        self._names = config.joint_names
        self._period_ns = round(1e9 / config.rates.control_rate_hz)
        self._max_age_ns = round(config.joint_states.max_age_s * 1e9)
        self._next_ns = begin_ns
        self._on_the_way: deque[tuple[int, Chunk]] = deque()
        self._measured: tuple[int, np.ndarray] | None = None
        self._fresh_chunk = False
        self.commands, self.clamps = Track(len(self._names)), Track(2)
        self.seams: list[int] = []

    @property
    def counts(self) -> dict[str, int]:
        """The executor's counters; refusals by reason, clamps by joint where it tells."""
        found: dict[str, int] = {}
        for name, value in vars(self._executor.counts).items():
            if not isinstance(value, dict):
                found[name] = value
                continue
            for key, count in sorted(value.items()):
                of = self._names[key] if isinstance(key, int) else key
                found[f'{name}: {of}'] = count
        return found

    @property
    def entry(self) -> Entry | None:
        """The chunk that is followed, and since when; see `Executor.entry`."""
        return self._executor.entry

    def moved(self, stamp_ns: int, positions: np.ndarray) -> None:
        """positions: float64 [D], where the robot was at stamp_ns."""
        self._measured = (stamp_ns, positions)

    def send(self, chunk: Chunk, ready_ns: int) -> None:
        """The chunk comes to the executor at ready_ns."""
        self._on_the_way.append((ready_ns, chunk))

    def advance(self, until_ns: int) -> None:
        """Send every command before this time, and take the chunks that are ready by then.

        A chunk ready at the time of a command counts for it, and one ready at the time of a tick is known to
        it: the next inference begins when the one before has been published. In a gap of the bag commands end
        after SILENCE_NS.
        """
        silent_ns = self._next_ns + SILENCE_NS
        while self._next_ns < min(until_ns, silent_ns):
            self._accept(self._next_ns)
            self._command(self._next_ns)
            self._next_ns += self._period_ns
        self._next_ns += max(0, -((self._next_ns - until_ns) // self._period_ns)) * self._period_ns
        self._accept(until_ns)

    def _accept(self, now_ns: int) -> None:
        while self._on_the_way and self._on_the_way[0][0] <= now_ns:
            ready_ns, chunk = self._on_the_way.popleft()
            measured = self._measured
            recent = measured is not None and ready_ns - measured[0] <= self._max_age_ns
            refusal = self._executor.accept(chunk, ready_ns, measured[1] if measured and recent else None)
            self._fresh_chunk |= not refusal

    def _command(self, now_ns: int) -> None:
        before = self._clamped()
        positions = self._executor.command(now_ns)
        if positions is None:
            return
        after = self._clamped()
        if self._fresh_chunk:
            self.seams.append(len(self.commands))
            self._fresh_chunk = False
        self.commands.add(now_ns, positions)
        self.clamps.add(now_ns, np.subtract(after, before))

    def _clamped(self) -> tuple[int, int]:
        counts = self._executor.counts
        return (
            counts.position_clamps,
            counts.step_clamps + counts.velocity_clamps + counts.acceleration_clamps,
        )
