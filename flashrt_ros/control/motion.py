"""The executor under its supervisor: what the streamer does at every tick, chunk and operator's act.

Two clocks are passed in: ros_ns, in which chunks are stamped, and wall_ns, of a clock that nobody sets. One
caller at a time. Usable offline; for offline evaluation without operators the `Executor` alone is enough.

A command may be made before it is due: `ahead` makes it on a copy and changes nothing; `adopt` takes the copy
over when the time has come, unless anything at all has happened to the motion since, or it must stop by now.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from flashrt_ros.control.chunk import Chunk
from flashrt_ros.control.executor import Executor
from flashrt_ros.control.limits import Limits
from flashrt_ros.control.settings import ExecutorSettings
from flashrt_ros.control.supervisor import ESTOP, RESET, SafetySettings, Supervisor
from flashrt_ros.control.timeline import Entry, Phase


@dataclass(frozen=True)
class Command:
    """positions: float64 [D], rad or m. zero_velocity: say with it that the velocities are 0."""

    positions: np.ndarray
    zero_velocity: bool = False


@dataclass(frozen=True)
class Ahead:
    """command: that of the moment ros_ns; None for nothing to be sent. The rest is for `Motion.adopt`."""

    command: Command | None
    ros_ns: int
    motion: Motion
    changes: int


class Motion:
    """Commands for one robot, as long as it may move; and the way to rest when it may not."""

    def __init__(self, settings: ExecutorSettings, safety: SafetySettings, limits: Limits) -> None:
        self.executor = Executor(settings, limits)
        self.supervisor = Supervisor(safety)
        self._stopped = ''
        self._changes = 0

    @property
    def phase(self) -> Phase:
        return Phase.STOPPED if self.supervisor.stop else self.executor.phase

    @property
    def following(self) -> Entry | None:
        """The chunk in execution; None while none is."""
        return None if self.supervisor.stop else self.executor.entry

    @property
    def trouble(self) -> str:
        """Why the robot does not move, in words; '' while it does."""
        if self.supervisor.stop:
            return f'{self.supervisor.state}: {self.supervisor.reason}'
        return {
            Phase.IDLE: 'waiting for a chunk',
            Phase.HOLDING: 'the last chunk is over, holding the last command',
        }.get(self.phase, '')

    def configure(self, settings: ExecutorSettings, safety: SafetySettings) -> None:
        """Apply other dynamic settings from now on."""
        self._changes += 1
        self.executor.configure(settings)
        self.supervisor.settings = safety

    def begin(self) -> None:
        """Activated: forget everything but an emergency stop that nobody has resumed from."""
        self._changes += 1
        before = self.supervisor
        self.supervisor = Supervisor(before.settings)
        if before.stop in (ESTOP, RESET):
            self.supervisor.stop, self.supervisor.reason = before.stop, before.reason
        self.supervisor.stops = before.stops
        self.executor.reset()
        self._stopped = ''

    def starts_from_measured(self, ros_ns: int) -> bool:
        """Whether `accept` needs to know where the robot is; else it goes on from the last command."""
        return self.supervisor.awaits_chunk or self.executor.starts_from_measured(ros_ns)

    def accept(self, chunk: Chunk, ros_ns: int, wall_ns: int, measured: np.ndarray | None) -> str:
        """Take a new chunk; see `Executor.accept`. Returns why it was refused, or ''.

        A stop for want of chunks ends with the first that is not refused; until then the safe action goes on.
        """
        self._changes += 1
        if self.supervisor.awaits_chunk:
            afterwards = copy.deepcopy(self.executor)
            afterwards.reset()
            refusal = afterwards.accept(chunk, ros_ns, measured)
            if refusal:
                self.executor.count_refusal(refusal)
                return refusal
            self.supervisor.end_starvation()
            self._stopped = ''
            self.executor.reset()
        self._apply(ros_ns)
        refusal = self.executor.accept(chunk, ros_ns, measured)
        if not refusal:
            entry = self.executor.entry
            until_end = 0 if entry is None else entry.end_ns - ros_ns
            self.supervisor.chunk_accepted(until_end, wall_ns)
        return refusal

    def tick(self, ros_ns: int, wall_ns: int) -> Command | None:
        """What to send now; None for nothing."""
        self._changes += 1
        self.watch(ros_ns, wall_ns)
        self._apply(ros_ns)
        positions = self.executor.command(ros_ns)
        if positions is None:
            return None
        resting = bool(self.supervisor.stop) and self.executor.at_rest
        return Command(positions, resting and self.supervisor.action == 'zero_velocity')

    def ahead(self, ros_ns: int, wall_ns: int) -> Ahead:
        """What `tick` will return then, if nothing happens until then. Changes nothing."""
        twin = copy.copy(self)
        twin.executor, twin.supervisor = self.executor.twin(), self.supervisor.twin()
        return Ahead(twin.tick(ros_ns, wall_ns), ros_ns, twin, self._changes)

    def stands(self, ahead: Ahead) -> bool:
        """Whether nothing has happened to the motion since."""
        return ahead.changes == self._changes

    def adopt(self, ahead: Ahead, ros_ns: int, wall_ns: int) -> bool:
        """Whether its command may be sent now; then the motion is as if it had been ticked when that is due.

        False, with nothing changed, where something has happened since, the time is another by a period, or
        the robot must stop by now for a reason that was none when the command was due.
        """
        stop = ahead.motion.supervisor.stop
        if not self.stands(ahead) or abs(ros_ns - ahead.ros_ns) * 1e-9 >= self.executor.limits.period_s:
            return False
        ahead.motion.watch(ros_ns, wall_ns)
        if ahead.motion.supervisor.stop != stop:
            return False
        self.executor, self.supervisor = ahead.motion.executor, ahead.motion.supervisor
        self._stopped = ahead.motion._stopped
        self._changes += 1
        return True

    def watch(self, ros_ns: int, wall_ns: int) -> bool:
        """Whether the robot must stop by now. `tick` asks by itself; who watches the ticks asks, too."""
        phase, stop = self.executor.phase_at(ros_ns), self.supervisor.stop
        self.supervisor.check(wall_ns, phase in (Phase.RUNNING, Phase.HOLDING), phase is Phase.STOPPED)
        self._changes += self.supervisor.stop != stop
        return bool(self.supervisor.stop)

    def hold(self) -> tuple[bool, str]:
        self._changes += 1
        return self.supervisor.hold()

    def estop(self, reason: str = 'emergency stop, by the operator') -> tuple[bool, str]:
        self._changes += 1
        return self.supervisor.estop(reason)

    def resume(self, wall_ns: int) -> tuple[bool, str]:
        self._changes += 1
        return self.supervisor.resume(wall_ns)

    def reset(self, ros_ns: int) -> tuple[bool, str]:
        """Also drops the motion and all chunks in flight, where nothing was stopped."""
        self._changes += 1
        if not self.supervisor.stop:
            self.executor.reset(ros_ns)
        return self.supervisor.reset()

    def deadman(self, pressed: bool, wall_ns: int) -> None:
        self._changes += 1
        self.supervisor.deadman(pressed, wall_ns)

    def end(self, reason: str) -> None:
        """Deactivating: from the next tick on come to rest."""
        self._changes += 1
        self.supervisor.end(reason)

    def _apply(self, ros_ns: int) -> None:
        """Make the executor do what the supervisor has decided."""
        stop = self.supervisor.stop
        if stop and (not self._stopped or self.supervisor.action != self._stopped):
            self.executor.stop(ros_ns, self.supervisor.action)
            self._stopped = self.supervisor.action
        elif not stop and self._stopped:
            self.executor.reset(ros_ns)
            self._stopped = ''
