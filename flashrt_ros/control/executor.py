"""From chunks to bounded commands: ramp from standstill, follow the timeline, hold at its end, then be safe.

`accept` and `command` are called with the current time; the strategy is in the settings. One caller at a
time.
Usable offline: `Executor(ExecutorSettings.of(config), Limits.of(config))`, then for each control period
`command(now_ns)`, and `accept(chunk, now_ns, measured)` whenever a chunk arrives; `entry` tells the planner.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from flashrt_ros.control.chunk import Chunk
from flashrt_ros.control.limits import Limited, Limits
from flashrt_ros.control.seam import Fade, Ramp
from flashrt_ros.control.settings import ExecutorCounts, ExecutorSettings
from flashrt_ros.control.stopping import Brake
from flashrt_ros.control.timeline import Combine, Entry, Phase, Timeline

CLOCK_JUMP_NS = 100_000_000
"""Time running back further than this is a restarted simulation or bag; less is a clock being corrected."""


class Executor:
    """Executes chunks for one robot within its limits.

    clamps_of: joint index -> commands that a limit changed. largest_jump: at any seam, rad or m.
    """

    def __init__(self, settings: ExecutorSettings, limits: Limits) -> None:
        self.counts = ExecutorCounts()
        self.clamps_of: dict[int, int] = {}
        self.largest_jump = 0.0
        self.limits = limits
        self._settings = settings
        self._timeline = self._new_timeline()
        self._phase = Phase.IDLE
        self._previous: np.ndarray | None = None
        self._speed: np.ndarray | None = None
        self._target: np.ndarray | None = None
        self._blend: Ramp | Fade | None = None
        self._brake: Brake | None = None
        self._resting = False
        self._stopped_by: str | None = None
        self._now_ns = 0

    @property
    def phase(self) -> Phase:
        """What the last command was: part of a motion, a hold, or none."""
        return self._phase

    def phase_at(self, now_ns: int) -> Phase:
        """What a command now would be."""
        return self._timeline.phase(now_ns)

    @property
    def entry(self) -> Entry | None:
        """The chunk that is followed, and when its row 0 counts as due; None while none is."""
        return None if self._stopped_by or self._phase is Phase.STOPPED else self._timeline.entry

    @property
    def position(self) -> np.ndarray | None:
        """float64 [D]: the last command; None where there was none since the robot may have been moved."""
        return self._previous

    @property
    def at_rest(self) -> bool:
        """Whether the last two commands were the same."""
        return self._speed is None or not self._speed.any()

    def configure(self, settings: ExecutorSettings) -> None:
        """Apply other settings from the next command on."""
        self._settings = settings
        timeline = self._timeline
        timeline.interpolate, timeline.decay = settings.interpolate, settings.decay
        timeline.hold_ns, timeline.max_age_ns = settings.hold_ns, settings.max_age_ns

    def reset(self, now_ns: int | None = None) -> None:
        """Forget all motion; the next chunk starts from standstill.

        now_ns: refuse chunks observed before it, which may be in flight; None takes any.
        """
        self._timeline.clear(now_ns)
        self._phase, self._stopped_by, self._resting = Phase.IDLE, None, False
        self._previous = self._speed = self._target = self._blend = self._brake = None

    def stop(self, now_ns: int, action: str) -> None:
        """Follow nothing any more, come to rest and stay so, until `reset`. Drops all chunks from now on.

        action: a safe action, see `ExecutorSettings`.
        """
        if self._stopped_by is None:
            self._advance_phase(now_ns)  # counts what was over before the stop
            self._brake = self._new_brake(now_ns, action)
        self._stopped_by = action
        self._timeline.clear(now_ns)
        self._blend = None

    def starts_from_measured(self, now_ns: int) -> bool:
        """Whether `accept` needs to know where the robot is: nothing was commanded, or time begins anew."""
        return self._previous is None or self._jumped_back(now_ns)

    def accept(self, chunk: Chunk, now_ns: int, measured: np.ndarray | None) -> str:
        """Take a new chunk. measured: float64 [D], where the robot is; needed to start from standstill.

        Returns why the chunk was refused, or ''.
        """
        self._notice_clock_jump(now_ns)
        self._advance_phase(now_ns)
        refusal = 'stopped' if self._stopped_by else self._try(chunk, now_ns, measured)
        if refusal:
            self.count_refusal(refusal)
        else:
            self.counts.chunks_accepted += 1
        return refusal

    def count_refusal(self, refusal: str) -> None:
        """A chunk was refused for this reason."""
        self.counts.chunks_refused[refusal] = self.counts.chunks_refused.get(refusal, 0) + 1

    def command(self, now_ns: int) -> np.ndarray | None:
        """float64 [D], rad or m: what to command now, or None where nothing must be sent."""
        self._notice_clock_jump(now_ns)
        self._advance_phase(now_ns)
        target = self._wanted(now_ns)
        if target is None or self._previous is None:
            return None
        if not np.isfinite(target).all():
            self.counts.commands_dropped += 1
            return None
        before = self._previous if self._target is None else self._target
        target_speed = (target - before) / self.limits.period_s
        limited = self.limits.apply(target, self._previous, self._speed, target_speed)
        self._count(limited)
        self._previous, self._speed, self._target = limited.positions, limited.velocities, target
        return limited.positions

    def twin(self) -> Executor:
        """The same motion, apart: what is done to the one does not change the other."""
        twin = copy.copy(self)
        twin.counts, twin.clamps_of = self.counts.copy(), self.clamps_of.copy()
        twin._timeline = self._timeline.copy()
        return twin

    def braking_ns(self, now_ns: int) -> int:
        """How long it takes from now to come to rest; 0 while a chunk is followed."""
        return 0 if self._brake is None else max(0, self._brake.end_ns - now_ns)

    def preview(self, now_ns: int, times_ns: Sequence[int]) -> np.ndarray:
        """float64 [R, D]: the commands at these times, if no chunk comes; R is less where nothing is sent.

        The limits hold from one to the next, and from the last command, at now_ns, on. Changes nothing.
        """
        ahead = copy.copy(self)
        ahead.counts, ahead.clamps_of, rows = ExecutorCounts(), {}, []
        for before_ns, time_ns in pairwise([now_ns, *times_ns]):
            ahead.limits = self.limits.every(max(1, time_ns - before_ns) * 1e-9)
            command = ahead.command(time_ns)
            if command is None:
                break
            rows.append(command)
        return np.array(rows) if rows else np.zeros((0, 0))

    def _try(self, chunk: Chunk, now_ns: int, measured: np.ndarray | None) -> str:
        standing = self._timeline.phase(now_ns) is not Phase.RUNNING
        base = measured if self._previous is None else self._previous
        if standing and base is None:
            return 'no measured position to start from'
        trial = self._timeline.copy()
        refusal = trial.accept(chunk, now_ns)
        if refusal:
            return refusal
        if standing and base is not None:
            self._previous = self._target = base
            if self._phase is not Phase.HOLDING or self._settings.combine is not Combine.APPEND:
                self._speed, self._blend = None, Ramp(base, now_ns, self._settings.ramp_ns)
        refusal = self._join(trial, now_ns)
        if not refusal:
            self._timeline, self._brake, self._resting = trial, None, False
        return refusal

    def _join(self, new: Timeline, now_ns: int) -> str:
        """Compare both motions where the new one takes over; blend a jump, or refuse it."""
        entry = new.entry
        if entry is None or (isinstance(self._blend, Ramp) and not self._blend.over(now_ns)):
            return ''
        at_ns = max(now_ns, entry.begin_ns)
        before = self._timeline.target(at_ns) if self._timeline.phase(now_ns) is Phase.RUNNING else None
        before = self._previous if before is None else self._blended(before, at_ns)
        after = new.target(at_ns)
        if before is None or after is None:
            return ''
        jump = before - after
        largest = float(np.abs(jump).max())
        if (np.abs(jump) > self.limits.jump).any():
            if self._settings.refuse_jumps:
                return 'jumps by more than max_jump'
            self.counts.jumps_blended += 1
            self._blend = Fade(jump, at_ns, self._settings.blend_ns)
        self.largest_jump = max(self.largest_jump, largest)
        return ''

    def _wanted(self, now_ns: int) -> np.ndarray | None:
        """Where the joints should be now, before limits; None where nothing is to be sent."""
        action = self._stopped_by
        if action is None and self._phase is Phase.STOPPED:
            action = self._settings.safe_action
        if action is not None:
            if self._brake is None or (action == 'stop' and self._brake.over(now_ns)):
                if action == 'stop':
                    self._previous = self._speed = None
                return self._previous
            return self._brake.at(now_ns)
        target = self._timeline.target(now_ns)
        if target is None:
            return None
        target = self._blended(target, now_ns)
        if self._brake is not None:
            # A joint that cannot stop at the last row comes to rest behind it; it does not turn back.
            return np.where(np.isfinite(self.limits.acceleration), self._brake.at(now_ns), target)
        return target

    def _blended(self, target: np.ndarray, now_ns: int) -> np.ndarray:
        if self._blend is None:
            return target
        if self._blend.over(now_ns):
            self._blend = None
            return target
        return self._blend.at(target, now_ns)

    def _new_brake(self, now_ns: int, action: str) -> Brake | None:
        if self._previous is None:
            return None
        speed = np.zeros_like(self._previous) if self._speed is None else self._speed
        over_s = self._settings.damp_ns * 1e-9 if action == 'damp' else 0.0
        return Brake(self._previous, speed, self.limits.acceleration, over_s, now_ns)

    def _advance_phase(self, now_ns: int) -> None:
        """Follow the timeline's phase and count what ended."""
        before, self._phase = self._phase, self._timeline.phase(now_ns)
        appended = self._settings.combine is Combine.APPEND
        if before is Phase.RUNNING and self._phase in (Phase.HOLDING, Phase.STOPPED):
            # In sync the end of a chunk is no underrun, only a stop is.
            self.counts.underruns += not appended or self._phase is Phase.STOPPED
        resting = self._timeline.resting(now_ns)
        if resting and not self._resting and self._blend is None:
            self._brake = self._new_brake(now_ns, 'hold')
        self._resting = resting
        if self._phase is Phase.STOPPED and before is not Phase.STOPPED:
            self.counts.stops += 1
            if self._brake is None or self._brake.over(now_ns):
                self._brake = self._new_brake(now_ns, self._settings.safe_action)

    def _count(self, limited: Limited) -> None:
        counts = self.counts
        counts.commands += 1
        for kind in limited.kinds:
            joints = np.flatnonzero(limited.clamped[kind])
            name = f'{kind}_clamps'
            setattr(counts, name, getattr(counts, name) + int(joints.size))
            for joint in joints.tolist():
                self.clamps_of[joint] = self.clamps_of.get(joint, 0) + 1

    def _notice_clock_jump(self, now_ns: int) -> None:
        """Time that jumped back began anew: so does the motion. A stop stays a stop."""
        if self._jumped_back(now_ns):
            self.counts.clock_jumps += 1
            if self._stopped_by is None:
                self.reset()
            else:
                self._timeline.clear()
        self._now_ns = now_ns

    def _jumped_back(self, now_ns: int) -> bool:
        return now_ns < self._now_ns - CLOCK_JUMP_NS

    def _new_timeline(self) -> Timeline:
        settings = self._settings
        return Timeline(
            settings.interpolate, settings.hold_ns, settings.max_age_ns, settings.combine, settings.decay
        )
