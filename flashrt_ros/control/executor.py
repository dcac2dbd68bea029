"""From chunks to bounded commands: ramp from standstill, follow the timeline, hold at its end, then be safe.

`accept` and `command` are called with the current time. One caller at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control.chunk import Chunk
from flashrt_ros.control.limits import Limits
from flashrt_ros.control.timeline import Phase, Timeline

_SECOND = 1_000_000_000

CLOCK_JUMP_NS = 100_000_000
"""Time running back further than this is a restarted simulation or bag; less is a clock being corrected."""


@dataclass(frozen=True)
class ExecutorSettings:
    """interpolate: along the line between rows. safe_stop: after the hold stop commanding, else hold on."""

    interpolate: bool
    ramp_ns: int
    hold_ns: int
    max_age_ns: int
    safe_stop: bool

    @classmethod
    def of(cls, config: RobotConfig) -> ExecutorSettings:
        executor = config.executor
        return cls(
            interpolate=executor.interpolation == 'linear',
            ramp_ns=round(executor.ramp_s * _SECOND),
            hold_ns=round(executor.hold_s * _SECOND),
            max_age_ns=round(executor.max_chunk_age_s * _SECOND),
            safe_stop=executor.safe_action == 'stop',
        )


@dataclass
class ExecutorCounts:
    """Since the executor was made. underruns: times that a chunk ended before the next came."""

    chunks_accepted: int = 0
    chunks_refused: dict[str, int] = field(default_factory=dict)
    commands: int = 0
    commands_dropped: int = 0
    underruns: int = 0
    stops: int = 0
    position_clamps: int = 0
    step_clamps: int = 0
    clock_jumps: int = 0


class Executor:
    """Executes chunks for one robot within its limits."""

    def __init__(self, settings: ExecutorSettings, limits: Limits) -> None:
        self.counts = ExecutorCounts()
        self._limits = limits
        self._settings = settings
        self._timeline = Timeline(settings.interpolate, settings.hold_ns, settings.max_age_ns)
        self._phase = Phase.IDLE
        self._previous: np.ndarray | None = None
        self._ramp_from: np.ndarray | None = None
        self._ramp_begin_ns = 0
        self._now_ns = 0

    @property
    def phase(self) -> Phase:
        """What the last command was: part of a motion, a hold, or none."""
        return self._phase

    def configure(self, settings: ExecutorSettings) -> None:
        """Apply other settings from the next command on."""
        self._settings = settings
        self._timeline.interpolate = settings.interpolate
        self._timeline.hold_ns, self._timeline.max_age_ns = settings.hold_ns, settings.max_age_ns

    def reset(self) -> None:
        """Forget all motion; the next chunk starts from standstill."""
        settings = self._settings
        self._timeline = Timeline(settings.interpolate, settings.hold_ns, settings.max_age_ns)
        self._phase, self._previous, self._ramp_from = Phase.IDLE, None, None

    def accept(self, chunk: Chunk, now_ns: int, measured: np.ndarray | None) -> str:
        """Take a new chunk. measured: float64 [D], where the robot is; needed to start from standstill.

        Returns why the chunk was refused, or ''.
        """
        self._notice_clock_jump(now_ns)
        self._advance_phase(now_ns)
        standing = self._timeline.phase(now_ns) is not Phase.RUNNING
        base = measured if self._previous is None else self._previous
        if standing and base is None:
            refusal = 'no measured position to start from'
        else:
            refusal = self._timeline.accept(chunk, now_ns)
        if refusal:
            self.counts.chunks_refused[refusal] = self.counts.chunks_refused.get(refusal, 0) + 1
            return refusal
        self.counts.chunks_accepted += 1
        if standing:
            self._previous = self._ramp_from = base
            self._ramp_begin_ns = now_ns
        return ''

    def command(self, now_ns: int) -> np.ndarray | None:
        """float64 [D], rad or m: what to command now, or None where nothing must be sent."""
        self._notice_clock_jump(now_ns)
        self._advance_phase(now_ns)
        target = self._timeline.target(now_ns)
        if target is None or self._previous is None:
            return None
        wanted = self._ramped(target, now_ns)
        if not np.isfinite(wanted).all():
            self.counts.commands_dropped += 1
            return None
        limited = self._limits.apply(wanted, self._previous)
        self.counts.position_clamps += limited.position_clamps
        self.counts.step_clamps += limited.step_clamps
        self.counts.commands += 1
        self._previous = limited.positions
        return limited.positions

    def _ramped(self, target: np.ndarray, now_ns: int) -> np.ndarray:
        """Blend from where the robot stood to the target over the ramp time."""
        elapsed = now_ns - self._ramp_begin_ns
        if self._ramp_from is None or elapsed >= self._settings.ramp_ns:
            self._ramp_from = None
            return target
        share = max(0, elapsed) / self._settings.ramp_ns
        return self._ramp_from + share * (target - self._ramp_from)

    def _advance_phase(self, now_ns: int) -> None:
        """Follow the timeline's phase and count what ended. After a stop the robot may be moved by others."""
        before, self._phase = self._phase, self._timeline.phase(now_ns)
        if before is Phase.RUNNING and self._phase in (Phase.HOLDING, Phase.STOPPED):
            self.counts.underruns += 1
        if self._phase is Phase.STOPPED:
            self.counts.stops += before is not Phase.STOPPED
            if self._settings.safe_stop:
                self._previous = None

    def _notice_clock_jump(self, now_ns: int) -> None:
        if now_ns < self._now_ns - CLOCK_JUMP_NS:
            self.counts.clock_jumps += 1
            self.reset()
        self._now_ns = now_ns
