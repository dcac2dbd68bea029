"""What stands between a topic and a robot's motors: accepts commands, or says why not, and never jumps.

It does what ros2_control's joint_trajectory_controller does: a trajectory replaces the one before it,
beginning at the set point of that moment; one point without a duration is a step command; what is not finite,
not whole or over is refused, and the robot goes on as before. After the last point it holds. Every set point
is within the joints' ranges and no faster than their motors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from flashrt_ros.simulation.scene import Joint

_SECOND = 1_000_000_000
NOISE = 1e-3
"""rad or m; less is no violation."""


@dataclass
class ControllerCounts:
    """Since the start. refused: reason -> commands. limited: joint -> commands beyond its range, or not
    reached in time because its motor is too slow.

    silences: times that commands stopped coming.
    """

    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    limited: dict[str, int] = field(default_factory=dict)
    silences: int = 0


class Controller:
    """Set points of one robot. silence_s: without a command for so long it reports silence, and holds.

    Times in ns of one clock; positions [D] in rad or m, in the order of `joints`.
    """

    def __init__(self, joints: Sequence[Joint], silence_s: float = 0.5) -> None:
        self.names = tuple(joint.name for joint in joints)
        self.counts = ControllerCounts()
        self._low = np.array([joint.low for joint in joints])
        self._high = np.array([joint.high for joint in joints])
        self._speed = np.array([joint.speed for joint in joints])
        self.silence_ns = round(silence_s * _SECOND)
        self.reset(0, np.array([joint.home for joint in joints]))

    def reset(self, now_ns: int, positions: np.ndarray) -> None:
        """Forget all motion and hold `positions`, also in the midst of a trajectory."""
        self._times = np.array([now_ns], dtype=np.int64)
        self._points = positions[None].astype(np.float64)
        self._set_point, self._set_ns = positions.astype(np.float64), now_ns
        self._heard_ns: int | None = None

    @property
    def silent(self) -> bool:
        """Whether commands have stopped coming."""
        return self._heard_ns is None

    def command(
        self,
        names: Sequence[str],
        points: Sequence[tuple[int, Sequence[float]]],
        now_ns: int,
        start_ns: int | None = None,
    ) -> str:
        """Follow these points: (time from start [ns], positions in the order of `names`).

        Returns '', or why not. start_ns: when the first duration counts from; None for now.
        """
        refusal, rows = self._checked(names, points)
        start_ns = now_ns if start_ns is None else start_ns
        times = np.array([start_ns + after for after, _ in points], dtype=np.int64)
        if not refusal and times[-1] < now_ns:
            refusal = 'it is over: its last point lies in the past'
        if refusal:
            return self.refuse(refusal)
        self.counts.accepted += 1
        self._note_limits(rows, now_ns)
        self._heard_ns = now_ns
        here = self.set_point(now_ns)
        if len(times) == 1 and times[0] <= now_ns:
            self._times, self._points = times, rows
        else:
            ahead = times > now_ns
            self._times = np.concatenate([[now_ns], times[ahead]])
            self._points = np.concatenate([here[None], rows[ahead]])
        return ''

    def refuse(self, why: str) -> str:
        """Count a command that is not followed."""
        self.counts.refused[why] = self.counts.refused.get(why, 0) + 1
        return why

    def set_point(self, now_ns: int) -> np.ndarray:
        """[D] Where the motors shall be now. Never called with an earlier time than before."""
        if (
            self._heard_ns is not None
            and now_ns - max(self._heard_ns, int(self._times[-1])) > self.silence_ns
        ):
            self._heard_ns = None
            self.counts.silences += 1
        within = np.clip(self._wanted(now_ns), self._low, self._high)
        reach = self._speed * max(0, now_ns - self._set_ns) / _SECOND
        allowed = self._set_point + np.clip(within - self._set_point, -reach, reach)
        self._set_point, self._set_ns = allowed, max(now_ns, self._set_ns)
        return allowed.copy()

    def _wanted(self, now_ns: int) -> np.ndarray:
        """[D] Where the trajectory is now."""
        return np.array([np.interp(now_ns, self._times, column) for column in self._points.T])

    def _note_limits(self, rows: np.ndarray, now_ns: int) -> None:
        outside = ((rows < self._low - NOISE) | (rows > self._high + NOISE)).any(0)
        within = np.clip(self._wanted(now_ns), self._low, self._high)
        late = np.abs(within - self.set_point(now_ns)) > NOISE
        for joint in np.flatnonzero(outside | late):
            name = self.names[joint]
            self.counts.limited[name] = self.counts.limited.get(name, 0) + 1

    def _checked(
        self, names: Sequence[str], points: Sequence[tuple[int, Sequence[float]]]
    ) -> tuple[str, np.ndarray]:
        """Why these points cannot be followed, or '' and the positions [N, D] in this robot's order."""
        nothing = np.zeros((0, len(self.names)))
        unknown = [name for name in names if name not in self.names]
        missing = [name for name in self.names if name not in names]
        if unknown or missing or len(set(names)) != len(names):
            wrong = (
                f"unknown joint '{unknown[0]}'" if unknown else f"no joint '{missing[0]}'" if missing else ''
            )
            return wrong or 'a joint is named twice', nothing
        if not points:
            return 'it has no points', nothing
        if any(len(positions) != len(names) for _, positions in points):
            return f'a point has not one position for each of {len(names)} joints', nothing
        rows = np.array([positions for _, positions in points], dtype=np.float64)
        if not np.isfinite(rows).all():
            return (
                f"the position of joint '{names[int(np.argwhere(~np.isfinite(rows))[0, 1])]}' is not finite",
                nothing,
            )
        after = [time for time, _ in points]
        if after[0] < 0 or any(later <= earlier for earlier, later in pairwise(after)):
            return 'its times do not increase', nothing
        return '', rows[:, [list(names).index(name) for name in self.names]]
