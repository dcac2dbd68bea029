"""Whether the robot may move, and if not, why and until when. Times are of a clock that nobody sets.

What stops it                        how it ends
    hold (operator)                      resume
    estop (operator, or its topic)       reset, then resume: two deliberate acts
    the deadman is released or silent    it is pressed again
    no chunk in time                     the next chunk, or resume where restart is 'operator'
    the node is deactivated              activate

The first reason stands until the stop is over, whatever comes on top of it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from flashrt_ros.configuration.schema import RobotConfig

_SECOND = 1_000_000_000

HOLD, ESTOP, RESET, DEADMAN, STARVED, ENDED = 'held', 'estopped', 'reset', 'deadman', 'starved', 'ended'
ENABLED = 'enabled'


@dataclass(frozen=True)
class SafetySettings:
    """deadman: whether one has to be pressed, at least every deadman_ns. safe_action: see `settings`.

    wall_ns: longest time without a chunk while moving, on the wall clock; None: its length and hold_ns where
    follow_length is set, else never. restart_by_operator: also after a stop for want of chunks.
    """

    safe_action: str = 'stop'
    hold_ns: int = 0
    deadman: bool = False
    deadman_ns: int = 200_000_000
    wall_ns: int | None = None
    follow_length: bool = True
    restart_by_operator: bool = False

    @classmethod
    def of(cls, config: RobotConfig, simulated_time: bool) -> SafetySettings:
        safety, executor = config.safety, config.executor
        return cls(
            safe_action=executor.safe_action,
            # Two periods more than by ROS time, which is to stop first where both clocks run.
            hold_ns=round((executor.hold_s + 2.0 / config.rates.control_rate_hz) * _SECOND),
            deadman=safety.deadman_topic is not None,
            deadman_ns=round(safety.deadman_timeout_s * _SECOND),
            wall_ns=None if safety.wall_s is None else round(safety.wall_s * _SECOND),
            follow_length=not simulated_time,
            restart_by_operator=safety.restart == 'operator',
        )


class Supervisor:
    """stop: one of the kinds above, or '' while the robot may move. reason: of the first stop, in words."""

    def __init__(self, settings: SafetySettings) -> None:
        self.settings = settings
        self.stop, self.reason = '', ''
        self.stops: dict[str, int] = {}
        self._pressed_ns: int | None = None
        self._deadline_ns: int | None = None
        if settings.deadman:
            self._begin(DEADMAN, 'the deadman has not been pressed yet')

    @property
    def action(self) -> str:
        """What to do while stopped: an operator's hold and a released deadman keep the pose under control."""
        return 'hold' if self.stop in (HOLD, DEADMAN, RESET) else self.settings.safe_action

    @property
    def state(self) -> str:
        return self.stop or ENABLED

    def twin(self) -> Supervisor:
        """In the same state, apart."""
        twin = copy.copy(self)
        twin.stops = self.stops.copy()
        return twin

    def hold(self, reason: str = 'hold, by the operator') -> tuple[bool, str]:
        if self.stop in (ESTOP, RESET, ENDED, HOLD):
            return self.stop != ENDED, f'stopped already: {self.reason}'
        self._begin(HOLD, reason)
        return True, 'holding; call resume to go on'

    def estop(self, reason: str = 'emergency stop, by the operator') -> tuple[bool, str]:
        self._begin(ESTOP, reason)
        return True, 'stopped; call reset, then resume, to move again'

    def reset(self) -> tuple[bool, str]:
        """After an estop: allow resume. Else nothing stops; the caller drops motion and chunks in flight."""
        if self.stop == ESTOP:
            self.stop = RESET
            return True, 'the emergency stop is reset; call resume to move again'
        return True, 'motion forgotten, chunks in flight are dropped'

    def resume(self, wall_ns: int) -> tuple[bool, str]:
        if self.stop == ESTOP:
            return False, f'not resumed: {self.reason}; call reset first'
        if self.stop == ENDED:
            return False, 'not resumed: the node is not active'
        if self.settings.deadman and not self._held(wall_ns):
            return False, 'not resumed: the deadman is not pressed'
        if not self.stop:
            return True, 'nothing was stopped'
        self._end()
        return True, 'resumed; the next chunk starts from standstill'

    def end(self, reason: str) -> None:
        """The node is being deactivated."""
        if not self.stop:
            self._begin(ENDED, reason)

    def deadman(self, pressed: bool, wall_ns: int) -> None:
        """A message of the deadman."""
        self._pressed_ns = wall_ns if pressed else None
        if pressed and self.stop == DEADMAN:
            self._end()

    def chunk_accepted(self, length_ns: int, wall_ns: int) -> None:
        """A chunk is executed from now on, for so long."""
        allowed = self.settings.wall_ns
        if allowed is None and self.settings.follow_length:
            allowed = length_ns + self.settings.hold_ns
        self._deadline_ns = None if allowed is None else wall_ns + allowed

    @property
    def awaits_chunk(self) -> bool:
        """Whether a chunk would end the stop: it is one for want of chunks, and no operator has to."""
        return self.stop == STARVED and not self.settings.restart_by_operator

    def end_starvation(self) -> None:
        """A chunk is there; see `awaits_chunk`."""
        self._end()

    def check(self, wall_ns: int, moving: bool, starved: bool) -> None:
        """At every tick. moving: a chunk is in execution. starved: its time and that of the hold are over."""
        if self.settings.deadman and not self._held(wall_ns):
            what = 'is silent' if self._pressed_ns is not None else 'is released'
            self._begin(DEADMAN, f'the deadman {what}')
        if starved:
            self._begin(STARVED, 'no chunk came in time, safe action taken')
        elif moving and self._deadline_ns is not None and wall_ns > self._deadline_ns:
            self._begin(STARVED, 'no chunk came in time by the wall clock (is ROS time standing still?)')

    def _held(self, wall_ns: int) -> bool:
        return self._pressed_ns is not None and wall_ns - self._pressed_ns <= self.settings.deadman_ns

    def _begin(self, kind: str, reason: str) -> None:
        """A graver stop takes over from a lighter one, which keeps its reason: it was first."""
        gravity = {'': 0, STARVED: 1, DEADMAN: 2, HOLD: 3, ENDED: 3, RESET: 4, ESTOP: 5}
        if gravity[kind] <= gravity[self.stop]:
            return
        self.reason = self.reason or reason
        self.stop = kind
        self.stops[kind] = self.stops.get(kind, 0) + 1

    def _end(self) -> None:
        self.stop, self.reason, self._deadline_ns = '', '', None
