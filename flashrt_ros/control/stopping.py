"""Coming to rest: how the commands go on from a moving robot when there is nothing more to follow."""

from __future__ import annotations

import math

import numpy as np


class Brake:
    """From a position and a speed to rest, joint by joint at a constant deceleration; then it stays there.

    positions, speeds: float64 [D], at begin_ns; rad or m, and per second. deceleration: float64 [D], per s2;
    infinite stops at once. over_s: take this long where the deceleration allows; 0 brakes as hard as it may.
    """

    def __init__(
        self,
        positions: np.ndarray,
        speeds: np.ndarray,
        deceleration: np.ndarray,
        over_s: float,
        begin_ns: int,
    ) -> None:
        self._positions, self._speeds, self._begin_ns = positions, speeds, begin_ns
        gentle = np.abs(speeds) / over_s if over_s > 0 else np.full_like(speeds, np.inf)
        used = np.minimum(gentle, deceleration)
        moving = (speeds != 0) & np.isfinite(used)
        self._duration = np.where(moving, np.abs(speeds) / np.where(moving, used, 1.0), 0.0)

    @property
    def duration_s(self) -> float:
        """Until the last joint rests."""
        return float(self._duration.max(initial=0.0))

    def at(self, now_ns: int) -> np.ndarray:
        """float64 [D]: where to be now."""
        elapsed = np.clip((now_ns - self._begin_ns) * 1e-9, 0.0, self._duration)
        share = np.divide(elapsed, self._duration, out=np.zeros_like(elapsed), where=self._duration > 0)
        return self._positions + self._speeds * elapsed * (1.0 - share / 2.0)

    @property
    def end_ns(self) -> int:
        """When the last joint rests."""
        return self._begin_ns + math.ceil(self.duration_s * 1e9)

    def over(self, now_ns: int) -> bool:
        return (now_ns - self._begin_ns) * 1e-9 >= self.duration_s
