"""What the kernel knows of a process, and whether a series of figures grows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

MIB = 1024 * 1024
_TICKS = os.sysconf('SC_CLK_TCK')
_PAGE = os.sysconf('SC_PAGE_SIZE')
POINTS = 600
"""More are thinned out: the slope looks at all pairs."""


class Reading(NamedTuple):
    """rss_mib, threads, files: now. cpu_s: used so far. waited_s: by its threads for a processor, so far."""

    rss_mib: float
    threads: int
    files: int
    cpu_s: float
    waited_s: float


def read(pid: int) -> Reading:
    """Raises FileNotFoundError if there is no such process."""
    folder = Path(f'/proc/{pid}')
    fields = (folder / 'stat').read_text().rpartition(')')[2].split()
    rss_mib = int((folder / 'statm').read_text().split()[1]) * _PAGE / MIB
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS
    return Reading(rss_mib, int(fields[17]), len(os.listdir(folder / 'fd')), cpu_s, waited(pid))


def waited(pid: int) -> float:
    """Seconds that the threads of a process were ready to run and had no processor, all together."""
    found = 0
    for task in Path(f'/proc/{pid}/task').iterdir():
        try:
            found += int((task / 'schedstat').read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has ended meanwhile
    return found * 1e-9


def raise_group(pid: int) -> None:
    """Let the niceness of a process count also where Linux gives every session a weight of its own."""
    level = os.getpriority(os.PRIO_PROCESS, pid)
    try:
        Path(f'/proc/{pid}/autogroup').write_text(str(level))
    except OSError:
        return  # without autogroups, or not allowed


def pressure() -> float:
    """Seconds so far in which somebody on this machine waited for a processor; 0 where it does not tell."""
    try:
        some = Path('/proc/pressure/cpu').read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(some.rpartition('total=')[2]) * 1e-6


class Slope(NamedTuple):
    """Per unit of the abscissa: the median of the slopes of all pairs, and the bounds that hold 95 %."""

    middle: float
    low: float
    high: float


def slope(times: Sequence[float], values: Sequence[float]) -> Slope | None:
    """Theil and Sen's slope with Kendall's bounds; None for fewer than ten points.

    The bounds take the points as independent, which memory is not: they are narrower than the truth.
    """
    if len(times) < 10:
        return None
    take = np.unique(np.linspace(0, len(times) - 1, min(len(times), POINTS)).round().astype(int))
    x, y = np.asarray(times, float)[take], np.asarray(values, float)[take]
    first, second = np.triu_indices(len(x), 1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    count = len(x)
    spread = 1.96 * np.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, int((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, int((len(slopes) + spread) / 2))
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))
