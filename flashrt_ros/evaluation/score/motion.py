"""How smooth the commands are: the jump at a seam between chunks, and the jerk."""

from __future__ import annotations

import numpy as np

from flashrt_ros.evaluation.replay.episode import Episode


def seam_jumps(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of commands [K], float64 [K, D]): how far the first command after a new chunk is from where
    the two before it were heading, c[k] - 2 c[k-1] + c[k-2]; of seams inside an unbroken motion only."""
    seams = episode.seams[episode.seams >= 2]
    period = _period(episode.commands_ns)
    times, commands = episode.commands_ns, episode.commands
    unbroken = seams[(times[seams] - times[seams - 2]) <= 3 * period] if seams.size else seams
    jumps = commands[unbroken] - 2 * commands[unbroken - 1] + commands[unbroken - 2]
    return unbroken, jumps


def jerk(times_ns: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(times [K], float64 [K, D]): third derivative, in rad/s^3 or m/s^3, by the third difference of four
    neighbours at equal distances; parts of a series with gaps are left out."""
    if len(times_ns) < 4:
        return np.zeros(0, dtype=np.int64), np.zeros((0, positions.shape[1]))
    period = _period(times_ns)
    steps = np.diff(times_ns)
    even = np.abs(steps - period) < 0.5 * period
    inside = even[:-2] & even[1:-1] & even[2:]
    third = np.diff(positions, n=3, axis=0) / (period * 1e-9) ** 3
    return times_ns[3:][inside], third[inside]


def silence(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [K], times [K]): at every control period from the first command to the end of the bag, 0 where
    a command was sent and 1 where none was."""
    times = episode.commands_ns
    if len(times) < 2:
        return np.ones(1), np.array([episode.begin_ns])
    period = _period(times)
    grid = np.arange(times[0], episode.end_ns, period).astype(np.int64)
    nearest = np.searchsorted(times, grid - period / 2)
    found = np.minimum(nearest, len(times) - 1)
    return (np.abs(times[found] - grid) > 0.75 * period).astype(np.float64), grid


def _period(times_ns: np.ndarray) -> float:
    """The usual time between neighbours [ns]."""
    steps = np.diff(times_ns)
    return float(np.median(steps)) if steps.size else 1.0
