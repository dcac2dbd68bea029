"""One trajectory for a whole chunk, for controllers that interpolate by themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashrt_ros.control.executor import Executor


@dataclass(frozen=True)
class Trajectory:
    """positions, velocities: float64 [R, D], rad or m and per second. offsets_ns: int [R], after stamp_ns."""

    stamp_ns: int
    offsets_ns: list[int]
    positions: np.ndarray
    velocities: np.ndarray


def trajectory_of(executor: Executor, now_ns: int, period_ns: int) -> Trajectory | None:
    """What the executor will command on the grid of its chunk, until that is over. None without any.

    The stamp is the grid's last point before now, so that every row is due at stamp + (i + 1) * step. Rows
    have passed ramp, seam and limits. Velocities are central differences, which a controller that
    interpolates with cubic splines needs to be smooth; the last is 0, so that it may end there.
    period_ns: of the rows while the robot is coming to rest and follows no chunk.
    """
    start = executor.position
    if start is None:
        return None
    entry = executor.entry
    if entry is None:
        stamp_ns, step_ns = now_ns, period_ns
        count = int(executor.braking_s * 1e9 // step_ns) + 1
    else:
        step_ns = entry.chunk.step_ns
        stamp_ns = entry.begin_ns + (now_ns - entry.begin_ns) // step_ns * step_ns
        count = max(1, entry.chunk.horizon - 1 - (stamp_ns - entry.begin_ns) // step_ns)
    positions = executor.preview(now_ns, stamp_ns + step_ns, step_ns, count)
    if len(positions) == 0:
        positions = start[None]
    return Trajectory(
        stamp_ns,
        [step_ns * (row + 1) for row in range(len(positions))],
        positions,
        central_differences(np.vstack([start, positions]), step_ns * 1e-9)[1:],
    )


def standing(positions: np.ndarray, now_ns: int, period_ns: int) -> Trajectory:
    """To stand at these positions, float64 [D], a period from now."""
    return Trajectory(now_ns, [period_ns], positions[None], np.zeros_like(positions)[None])


def central_differences(positions: np.ndarray, step_s: float) -> np.ndarray:
    """Velocities [R, D] of rows [R, D] that come every step_s; 0 at both ends."""
    velocities = np.zeros_like(positions)
    velocities[1:-1] = (positions[2:] - positions[:-2]) / (2.0 * step_s)
    return velocities
