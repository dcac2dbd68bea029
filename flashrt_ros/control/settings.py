"""What the executor does, as plain values; and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control.strategy import STRATEGIES
from flashrt_ros.control.timeline import Combine

_SECOND = 1_000_000_000


@dataclass(frozen=True)
class ExecutorSettings:
    """interpolate: along the line between rows. combine, decay: see `timeline`. Times in ns.

    safe_action: 'stop' (then silent), 'hold', 'damp' (rest over damp_ns, then hold) or 'zero_velocity'.
    refuse_jumps: a seam beyond the joints' max_jump is refused; else it is blended over blend_ns.
    """

    interpolate: bool
    ramp_ns: int
    hold_ns: int
    max_age_ns: int
    safe_action: str = 'stop'
    damp_ns: int = 0
    combine: Combine = Combine.REPLACE
    decay: float = 0.01
    refuse_jumps: bool = False
    blend_ns: int = 0

    @classmethod
    def of(cls, config: RobotConfig) -> ExecutorSettings:
        executor = config.executor
        return cls(
            interpolate=executor.interpolation == 'linear',
            ramp_ns=round(executor.ramp_s * _SECOND),
            hold_ns=round(executor.hold_s * _SECOND),
            max_age_ns=round(executor.max_chunk_age_s * _SECOND),
            safe_action=executor.safe_action,
            damp_ns=round(executor.damp_s * _SECOND),
            combine=STRATEGIES[executor.strategy].combine,
            decay=executor.ensemble_decay,
            refuse_jumps=executor.seam == 'refuse',
            blend_ns=round(executor.seam_blend_s * _SECOND),
        )


@dataclass
class ExecutorCounts:
    """Since the executor was made. underruns: times that a chunk ended before the next came.

    *_clamps: joints changed by a limit, over all commands. jumps_blended: seams beyond the bound.
    """

    chunks_accepted: int = 0
    chunks_refused: dict[str, int] = field(default_factory=dict)
    commands: int = 0
    commands_dropped: int = 0
    underruns: int = 0
    stops: int = 0
    position_clamps: int = 0
    velocity_clamps: int = 0
    acceleration_clamps: int = 0
    step_clamps: int = 0
    jumps_blended: int = 0
    clock_jumps: int = 0

    def copy(self) -> ExecutorCounts:
        return replace(self, chunks_refused=self.chunks_refused.copy())
