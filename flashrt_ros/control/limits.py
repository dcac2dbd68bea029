"""Limits that every command passes, joint by joint: position, velocity, acceleration, and step.

A joint with limited acceleration goes along with its target, closes what remains no faster than it can brake
for, and brakes before the end of its range: it never overshoots because it was late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control.urdf import JointLimits

TOLERANCE = 1e-9
"""rad or m; smaller corrections are rounding, and no clamp."""

KINDS = ('position', 'velocity', 'acceleration', 'step')


@dataclass(frozen=True)
class Limited:
    """positions: float64 [D], within the limits. velocities: float64 [D], of the step there, per second.

    clamped: kind of limit -> bool [D], the joints it changed. kinds: those that changed any.
    """

    positions: np.ndarray
    velocities: np.ndarray
    clamped: Mapping[str, np.ndarray] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """low, high, step: float64 [D], rad or m. velocity, acceleration: float64 [D], per s and s2. jump: [D].

    Infinite where there is no limit. period_s: time between two commands.
    """

    low: np.ndarray
    high: np.ndarray
    step: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jump: np.ndarray
    period_s: float

    @classmethod
    def of(cls, config: RobotConfig, described: Mapping[str, JointLimits] | None = None) -> Limits:
        """The YAML's limits; described: joint -> limits of the URDF, of which the tighter holds."""
        described = described or {}
        joints = config.robot.joints
        urdf = [described.get(joint.name, JointLimits()) for joint in joints]
        return cls(
            low=_tighter([joint.position_min for joint in joints], [own.lower for own in urdf], -np.inf),
            high=_tighter([joint.position_max for joint in joints], [own.upper for own in urdf], np.inf),
            step=_tighter([joint.max_step for joint in joints], [None] * len(joints), np.inf),
            velocity=_tighter(
                [joint.max_velocity for joint in joints], [own.velocity for own in urdf], np.inf
            ),
            acceleration=_tighter([joint.max_acceleration for joint in joints], [None] * len(joints), np.inf),
            jump=_tighter([joint.max_jump for joint in joints], [None] * len(joints), np.inf),
            period_s=1.0 / config.rates.control_rate_hz,
        )

    @classmethod
    def none(cls, count: int, period_s: float) -> Limits:
        """No limit on any of `count` joints."""
        free = np.full(count, np.inf)
        return cls(-free, free, free, free, free, free, period_s)

    def every(self, period_s: float) -> Limits:
        """The same limits for commands at another period; the step is a speed in disguise."""
        return replace(self, step=self.step * (period_s / self.period_s), period_s=period_s)

    def apply(
        self,
        target: np.ndarray,
        previous: np.ndarray,
        speed: np.ndarray | None = None,
        target_speed: np.ndarray | None = None,
    ) -> Limited:
        """The nearest allowed command to `target` that follows `previous`. All float64 [D].

        speed: velocity of the step before, per second; None at rest. target_speed: that of the target.
        The largest step comes last: a joint outside its range is brought back in bounded steps, not in a
        jump.
        """
        count = len(self.low)
        speeds = [0.0] * count if speed is None else speed.tolist()
        target_speeds = [0.0] * count if target_speed is None else target_speed.tolist()
        steps = [
            limit.apply(*one)
            for limit, *one in zip(
                self._joints, target.tolist(), previous.tolist(), speeds, target_speeds, strict=True
            )
        ]
        positions = np.array([step[0] for step in steps])
        kinds, clamped = [], {}
        for kind, changes in zip(KINDS, zip(*(step[1:] for step in steps), strict=True), strict=True):
            changed = [not -TOLERANCE <= change <= TOLERANCE for change in changes]
            clamped[kind] = np.array(changed) if any(changed) else self._unclamped
            if any(changed):
                kinds.append(kind)
        return Limited(positions, (positions - previous) / self.period_s, clamped, tuple(kinds))

    @cached_property
    def _joints(self) -> list[_Joint]:
        columns = (self.low, self.high, self.step, self.velocity, self.acceleration)
        return [
            _Joint(low, high, step, velocity, acceleration, self.period_s)
            for low, high, step, velocity, acceleration in zip(*(c.tolist() for c in columns), strict=True)
        ]

    @cached_property
    def _unclamped(self) -> np.ndarray:
        return np.zeros(len(self.low), dtype=bool)


class _Joint:
    """The limits of one joint, in plain numbers: for a handful of joints numpy takes three times as long."""

    def __init__(
        self, low: float, high: float, step: float, velocity: float, acceleration: float, period_s: float
    ) -> None:
        self._low, self._high, self._step, self._period_s = low, high, step, period_s
        self._fastest = velocity * period_s
        self._gain = acceleration * period_s**2 if math.isfinite(acceleration) else None

    def apply(
        self, target: float, previous: float, speed: float, target_speed: float
    ) -> tuple[float, float, float, float, float]:
        """The command, and by how much each kind of limit changed the way there, in the order of `KINDS`."""
        within = _clip(target, self._low, self._high)
        wanted = within - previous
        slow = soft = _clip(wanted, -self._fastest, self._fastest)
        if self._gain is not None:
            period = self._period_s
            soft = self._accelerated(self._gain, wanted, previous, speed * period, target_speed * period)
        step = _clip(soft, -self._step, self._step)
        # Acceleration may not carry a joint out of its range, nor further out.
        position = _clip(previous + step, min(self._low, previous), max(self._high, previous))
        return position, within - target, slow - wanted, soft - slow, step - soft

    def _accelerated(
        self, gain: float, wanted: float, previous: float, step: float, target_step: float
    ) -> float:
        """The step that follows the step before, `step`, of which it differs by `gain` at most.

        wanted: the whole way to the target, which moves by `target_step` a period. A joint goes along with
        its target, and closes what remains no faster than it can brake for; likewise before the end of its
        range.
        """
        fastest = self._fastest
        along = _clip(target_step, -fastest, fastest)
        rest = wanted - along
        closable = _brake(abs(rest), gain)
        closing = along + _clip(rest, -closable, closable)
        up, down = _brake(self._high - previous, gain), _brake(previous - self._low, gain)
        following = _clip(_clip(closing, -fastest, fastest), -down, up)
        return _clip(following, step - gain, step + gain)


def _clip(value: float, low: float, high: float) -> float:
    """As np.clip: `high` wins."""
    value = low if value < low else value
    return high if value > high else value


def _brake(distance: float, gain: float) -> float:
    """The largest step towards a place at `distance` from which steps can still shrink by `gain` to end
    there.

    A step s needs s + (s - gain) + (s - 2 gain) + ... of room, while positive; this is the inverse of that
    sum.
    """
    room = _clip(distance, 0.0, 1e30)
    more = (math.sqrt(1.0 + 8.0 * room / gain) - 1.0) / 2.0 // 1.0
    return (room + gain * more * (more + 1.0) / 2.0) / (more + 1.0)


def _tighter(yaml: list[float | None], urdf: list[float | None], free: float) -> np.ndarray:
    choose = max if free < 0 else min
    pairs = zip(yaml, urdf, strict=True)
    return np.array([choose([free, *(value for value in pair if value is not None)]) for pair in pairs])
