"""Absolute deadlines at a fixed period, and how late they were met. Clock values are passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

import numpy as np

from flashrt_ros.percentiles import percentiles


class Deadlines:
    """Deadlines at begin + k * period: lateness never adds up."""

    def __init__(self, period_ns: int, begin_ns: int) -> None:
        self.period_ns = period_ns
        self.next_ns = begin_ns

    def meet(self, now_ns: int) -> tuple[int, int]:
        """Called when the wait is over: (how late [ns], deadlines skipped because they are past as well).

        A clock that was set back by more than a period begins a new series.
        """
        late_ns = now_ns - self.next_ns
        if late_ns < -self.period_ns:
            self.next_ns, late_ns = now_ns, 0
        skipped = max(0, late_ns // self.period_ns)
        self.next_ns += (skipped + 1) * self.period_ns
        return late_ns, skipped


class UsualTime:
    """How long a piece of work is expected to take: the median of the last 20 times, because a slow one says
    nothing about the next."""

    def __init__(self) -> None:
        self._took_ns = deque[int](maxlen=20)

    def note(self, took_ns: int) -> None:
        self._took_ns.append(took_ns)

    @property
    def ns(self) -> int:
        """0 until it has been done once."""
        return round(median(self._took_ns)) if self._took_ns else 0


@dataclass(frozen=True)
class Pace:
    """Over the last deadlines. rate_hz: met per second. late_*: seconds."""

    rate_hz: float
    late_p50_s: float
    late_p99_s: float
    late_p999_s: float
    late_max_s: float


class PaceMeter:
    """Rate and lateness over the last `window` deadlines. One thread notes, any other may ask.

    In arrays, because to make one of thousands of Python numbers would hold up the thread that notes.
    """

    def __init__(self, window: int) -> None:
        self._window, self._noted = window, 0
        # One more than is asked for: it may be written meanwhile.
        self._now_ns, self._late_ns = (np.zeros(window + 1, np.int64) for _ in range(2))

    def note(self, now_ns: int, late_ns: int) -> None:
        at = self._noted % len(self._now_ns)
        self._now_ns[at], self._late_ns[at] = now_ns, late_ns
        self._noted += 1

    def pace(self) -> Pace | None:
        """None until two deadlines were met."""
        noted = self._noted
        count = min(noted, self._window)
        if count < 2:
            return None
        at = np.arange(noted - count, noted) % len(self._now_ns)
        spent = float(self._now_ns[at[-1]] - self._now_ns[at[0]]) * 1e-9
        late = self._late_ns[at] * 1e-9
        p50, p99, p999 = percentiles(late, (50, 99, 99.9))
        rate = (count - 1) / spent if spent > 0 else 0.0
        return Pace(rate, p50, p99, p999, float(late.max()))
