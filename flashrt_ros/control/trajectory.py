"""One trajectory for a whole chunk, for controllers that interpolate by themselves.

What ros2_control's joint_trajectory_controller asks of one, and does with it, is in its sources
(ros2_controllers, branch kilted); `test/control/joint_trajectory_controller.py` states it. From it follow:

- It refuses a trajectory whose end lies in its past (`validate_trajectory_msg`). The way to rest is short, so
  it carries no time at all: a clock a little ahead, or a late message, must not cost the stop.
- It refuses one that ends with a velocity (the same place): the last is exactly 0.
- Between points with velocities it goes along a cubic (`Trajectory::interpolate_between_points`), which may
  swing beyond both: velocities are such that it does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flashrt_ros.control.executor import Executor
from flashrt_ros.control.timeline import Entry

ON_ARRIVAL = 0
"""Instead of a stamp: begin when it arrives."""


@dataclass(frozen=True)
class Trajectory:
    """positions, velocities: float64 [R, D], rad or m and per second. offsets_ns: int [R], after stamp_ns."""

    stamp_ns: int
    offsets_ns: list[int]
    positions: np.ndarray
    velocities: np.ndarray


def trajectory_of(executor: Executor, now_ns: int, period_ns: int) -> Trajectory | None:
    """What the executor will command on the grid of its chunk, until it rests. None without any motion.

    The stamp is the grid's last point before now, so that every row is due at stamp + (i + 1) * step. Rows
    have passed ramp, seam and limits. While the robot is coming to rest and follows no chunk, the stamp is
    `ON_ARRIVAL` and the rows are due every period_ns.
    now_ns: of the executor's last command. period_ns: of commands.
    """
    start, entry = executor.position, executor.entry
    if start is None:
        return None
    if entry is None:
        stamp_ns, begin_ns, step_ns = ON_ARRIVAL, now_ns, period_ns
        count = int(executor.braking_s * 1e9 // step_ns) + 1
        positions = executor.preview(now_ns, _grid(begin_ns, step_ns, count))
    else:
        step_ns = entry.chunk.step_ns
        stamp_ns = begin_ns = entry.begin_ns + (now_ns - entry.begin_ns) // step_ns * step_ns
        positions = _rows_to_come(executor, entry, now_ns, begin_ns, period_ns)
    if len(positions) == 0:
        positions = start[None]
    offsets = [step_ns * (row + 1) for row in range(len(positions))]
    velocities = velocities_of(np.vstack([start, positions]), [now_ns - begin_ns, *offsets])
    return Trajectory(stamp_ns, offsets, positions, velocities[1:])


def standing(positions: np.ndarray, period_ns: int) -> Trajectory:
    """To stand at these positions, float64 [D], a period after it has arrived."""
    return Trajectory(ON_ARRIVAL, [period_ns], positions[None], np.zeros_like(positions)[None])


def velocities_of(positions: np.ndarray, times_ns: list[int]) -> np.ndarray:
    """Velocities [R, D] of rows [R, D] at these times: a cubic stays between its rows; 0 in the last.

    Central differences, but 0 where a joint turns or stands, and nowhere more than three times the slope of
    either side, which keeps the cubic monotone (Fritsch and Carlson, SIAM J. Numer. Anal. 17, 1980).
    """
    times = np.array(times_ns) * 1e-9
    slopes = np.diff(positions, axis=0) / np.diff(times)[:, None]
    before, after = np.vstack([slopes[:1], slopes]), np.vstack([slopes, slopes[-1:]])
    bound = np.where(before * after > 0, 3.0 * np.minimum(np.abs(before), np.abs(after)), 0.0)
    velocities = np.clip(np.gradient(positions, times, axis=0), -bound, bound)
    velocities[-1] = 0.0
    return np.asarray(velocities)


def _rows_to_come(executor: Executor, entry: Entry, now_ns: int, begin_ns: int, period_ns: int) -> np.ndarray:
    """Commands [R, D] at the points of the grid after begin_ns, up to the last row of the chunk; and further
    where a limit on acceleration brings a joint to rest only behind it, at most as long again."""
    step_ns, acceleration = entry.chunk.step_ns, executor.limits.acceleration
    count = max(1, entry.chunk.horizon - 1 - (begin_ns - entry.begin_ns) // step_ns)
    if not np.isfinite(acceleration).any():
        return executor.preview(now_ns, _grid(begin_ns, step_ns, count))
    last = np.abs(np.diff(entry.chunk.actions[-3:], axis=0)).max(axis=0, initial=0.0) / (step_ns * 1e-9)
    behind = math.ceil((last / acceleration).max() / (step_ns * 1e-9))
    grid = _grid(begin_ns, step_ns, count + min(behind, entry.chunk.horizon))
    # Braking begins at a command, not at a row: there it needs the commands themselves.
    between = range(begin_ns + (count - 1) * step_ns, grid[-1], period_ns)
    times = sorted({*grid, *(time for time in between if time > now_ns)})
    commands = executor.preview(now_ns, times)
    return commands[np.isin(times[: len(commands)], grid)]


def _grid(begin_ns: int, step_ns: int, count: int) -> list[int]:
    return [begin_ns + step_ns * (row + 1) for row in range(count)]
