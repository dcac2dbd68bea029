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
    now_ns: of the executor's last command. period_ns: of the rows while the robot is coming to rest and
    follows no chunk.
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
    offsets = [step_ns * (row + 1) for row in range(len(positions))]
    velocities = velocities_of(np.vstack([start, positions]), [now_ns - stamp_ns, *offsets])
    return Trajectory(stamp_ns, offsets, positions, velocities[1:])


def standing(positions: np.ndarray, now_ns: int, period_ns: int) -> Trajectory:
    """To stand at these positions, float64 [D], a period from now."""
    return Trajectory(now_ns, [period_ns], positions[None], np.zeros_like(positions)[None])


def velocities_of(positions: np.ndarray, times_ns: list[int]) -> np.ndarray:
    """Velocities [R, D] of rows [R, D] at these times: central differences, 0 in the last."""
    velocities = np.gradient(positions, np.array(times_ns) * 1e-9, axis=0)
    velocities[-1] = 0.0
    return np.asarray(velocities)
