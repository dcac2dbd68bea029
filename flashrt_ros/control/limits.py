"""Limits that every command passes, joint by joint: position, velocity, acceleration, and step.

A joint with limited acceleration goes along with its target, closes what remains no faster than it can brake
for, and brakes before the end of its range: it never overshoots because it was late.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control.urdf import JointLimits

TOLERANCE = 1e-9
"""rad or m; smaller corrections are rounding, and no clamp."""

KINDS = ('position', 'velocity', 'acceleration', 'step')


@dataclass(frozen=True)
class Limited:
    """positions: float64 [D], within the limits. velocities: float64 [D], of the step there, per second.

    clamped: kind of limit -> bool [D], the joints it changed.
    """

    positions: np.ndarray
    velocities: np.ndarray
    clamped: Mapping[str, np.ndarray] = field(default_factory=dict)


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
        period = self.period_s
        speed = np.zeros_like(previous) if speed is None else speed
        target_speed = np.zeros_like(previous) if target_speed is None else target_speed
        within = np.clip(target, self.low, self.high)
        wanted = within - previous
        slow = np.clip(wanted, -self.velocity * period, self.velocity * period)
        soft = self._accelerated(slow, wanted, previous, speed * period, target_speed * period)
        step = np.clip(soft, -self.step, self.step)
        # Acceleration may not carry a joint out of its range, nor further out.
        low, high = np.minimum(self.low, previous), np.maximum(self.high, previous)
        positions = np.clip(previous + step, low, high)
        changes = (within - target, slow - wanted, soft - slow, step - soft)
        clamped = {kind: np.abs(change) > TOLERANCE for kind, change in zip(KINDS, changes, strict=True)}
        return Limited(positions, (positions - previous) / period, clamped)

    def _accelerated(
        self,
        slow: np.ndarray,
        wanted: np.ndarray,
        previous: np.ndarray,
        step: np.ndarray,
        target_step: np.ndarray,
    ) -> np.ndarray:
        """The step `slow`, changed where acceleration is limited: it follows the step before, `step`.

        wanted: the whole way to the target, which moves by `target_step` a period. A joint goes along with
        its target, and closes what remains no faster than it can brake for; likewise before the end of its
        range.
        """
        bounded = np.isfinite(self.acceleration)
        if not bounded.any():
            return slow
        gain = np.where(bounded, self.acceleration, 1.0) * self.period_s**2
        fastest = self.velocity * self.period_s
        along = np.clip(target_step, -fastest, fastest)
        rest = wanted - along
        closing = along + np.clip(rest, -_brake(np.abs(rest), gain), _brake(np.abs(rest), gain))
        up, down = _brake(self.high - previous, gain), _brake(previous - self.low, gain)
        following = np.clip(np.clip(closing, -fastest, fastest), -down, up)
        return np.where(bounded, np.clip(following, step - gain, step + gain), slow)


def _brake(distance: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The largest step towards a place at `distance` from which steps can still shrink by `gain` to end
    there.

    A step s needs s + (s - gain) + (s - 2 gain) + ... of room, while positive; this is the inverse of that
    sum.
    """
    room = np.clip(distance, 0.0, 1e30)
    more = np.floor((np.sqrt(1.0 + 8.0 * room / gain) - 1.0) / 2.0)
    return np.asarray((room + gain * more * (more + 1.0) / 2.0) / (more + 1.0))


def _tighter(yaml: list[float | None], urdf: list[float | None], free: float) -> np.ndarray:
    choose = max if free < 0 else min
    pairs = zip(yaml, urdf, strict=True)
    return np.array([choose([free, *(value for value in pair if value is not None)]) for pair in pairs])
