"""Numbers from times: distributions, rates, jitter. Seconds unless a name ends in _ns or _hz.

A *window* is a half-open span of time (begin_ns, end_ns]. *Jitter* is how much the time between two
neighbours differs from the period; *lateness* is how far an event is behind the absolute grid that it should
lie on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SECOND = 1_000_000_000

PHASE_BINS = 100
"""Parts of a period in which `lateness` looks for the phase of a grid."""

EARLY = 0.1
"""Part of a period by which an event may come before its grid point."""


@dataclass(frozen=True)
class Summary:
    """A distribution: how many values, their mean, p50, p90, p99 and largest. Without values, all are nan."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float] | np.ndarray) -> Summary:
        array = np.asarray(list(values), dtype=np.float64)
        if array.size == 0:
            return cls(0, *[float('nan')] * 5)
        p50, p90, p99 = np.percentile(array, (50, 90, 99))
        return cls(array.size, float(array.mean()), float(p50), float(p90), float(p99), float(array.max()))


@dataclass(frozen=True)
class Window:
    """The span (begin_ns, end_ns] in which a run is judged.

    Open at the beginning, so that the event that opens it is not counted on top of those that follow.
    """

    begin_ns: int
    end_ns: int

    @property
    def length(self) -> float:
        """Seconds; never negative."""
        return max(0, self.end_ns - self.begin_ns) / SECOND

    def within(self, times_ns: np.ndarray) -> np.ndarray:
        return times_ns[(times_ns > self.begin_ns) & (times_ns <= self.end_ns)]


@dataclass(frozen=True)
class Rate:
    """How often something came, against how often it should have.

    achieved_hz: events in the window over its length, so that a stream that dies early is slow, not short.
    largest_gap: longest time without an event, to the borders of the window too.
    """

    wanted_hz: float
    achieved_hz: float
    count: int
    largest_gap: float

    @classmethod
    def of(cls, times_ns: np.ndarray, wanted_hz: float, window: Window) -> Rate:
        times = np.sort(window.within(np.asarray(times_ns, dtype=np.int64)))
        achieved = times.size / window.length if window.length else 0.0
        edges = np.concatenate([[window.begin_ns], times, [window.end_ns]])
        return cls(wanted_hz, achieved, int(times.size), float(np.diff(edges).max()) / SECOND)

    @property
    def shortfall(self) -> float:
        """The part of the wanted rate that is missing; negative where there was more."""
        return 1.0 - self.achieved_hz / self.wanted_hz


def intervals(times_ns: np.ndarray) -> np.ndarray:
    """Seconds between neighbours, in the order of time."""
    return np.diff(np.sort(np.asarray(times_ns, dtype=np.int64))) / SECOND


def jitter(times_ns: np.ndarray, rate_hz: float) -> np.ndarray:
    """Seconds by which each interval is longer (or, negative, shorter) than the period."""
    return intervals(times_ns) - 1.0 / rate_hz


def lateness(times_ns: np.ndarray, rate_hz: float) -> np.ndarray:
    """Seconds behind an absolute grid of this rate, in the order of time.

    The grid's phase is not known from outside. Most events are on time, so it is taken from the fullest
    hundredth of the period. An event belongs to the grid point before it, unless it is less than `EARLY` of a
    period ahead of the next: then it is early, and its lateness negative.
    """
    times = np.sort(np.asarray(times_ns, dtype=np.int64))
    if times.size == 0:
        return np.zeros(0)
    phases = (times - times[0]) / SECOND * rate_hz % 1.0
    bins = (phases * PHASE_BINS).astype(int)
    fullest = phases[bins == np.bincount(bins).argmax()]
    return ((phases - fullest.min() + EARLY) % 1.0 - EARLY) / rate_hz
