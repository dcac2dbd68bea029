"""The seam between two motions: a ramp from standstill, and a jump that fades."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ramp:
    """From where the robot stands into the target: the straight mixture of both over `length_ns`."""

    start: np.ndarray
    begin_ns: int
    length_ns: int

    def over(self, now_ns: int) -> bool:
        """One without length is over before it begins, too: a chunk may come while a command is made."""
        return self.length_ns == 0 or now_ns - self.begin_ns >= self.length_ns

    def at(self, target: np.ndarray, now_ns: int) -> np.ndarray:
        """float64 [D]: the command for this target."""
        if self.over(now_ns):
            return target
        share = max(0, now_ns - self.begin_ns) / self.length_ns
        return np.asarray(self.start + share * (target - self.start))


@dataclass(frozen=True)
class Fade:
    """An offset from the target, float64 [D], that fades without a jump in speed or acceleration.

    10 x^3 - 15 x^4 + 6 x^5, the minimum-jerk profile. Before begin_ns there is none.
    """

    offset: np.ndarray
    begin_ns: int
    length_ns: int

    def over(self, now_ns: int) -> bool:
        return now_ns - self.begin_ns >= self.length_ns

    def at(self, target: np.ndarray, now_ns: int) -> np.ndarray:
        """float64 [D]: the command for this target."""
        if now_ns < self.begin_ns or self.over(now_ns):
            return target
        share = (now_ns - self.begin_ns) / self.length_ns
        left = 1.0 - share**3 * (10.0 - 15.0 * share + 6.0 * share**2)
        return np.asarray(target + left * self.offset)
