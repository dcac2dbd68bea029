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

from dataclasses import dataclass

import numpy as np

from flashrt_ros.control.executor import Executor
from flashrt_ros.control.timeline import Entry

ON_ARRIVAL = 0
"""Instead of a stamp: begin when it arrives."""

REST_ROWS = 8
"""Most points on a way to rest: it is a parabola, which a cubic through a few follows."""


@dataclass(frozen=True)
class Trajectory:
    """positions, velocities: float64 [R, D], rad or m and per second. offsets_ns: int [R], after stamp_ns."""

    stamp_ns: int
    offsets_ns: list[int]
    positions: np.ndarray
    velocities: np.ndarray


def trajectory_of(executor: Executor, now_ns: int, period_ns: int) -> Trajectory | None:
    """What the executor will command on the grid of its chunk, until it rests. None without any motion.

    The stamp is the grid's last point before now, so that every row is due at stamp + (i + 1) * step; behind
    the chunk's last row there may be some more, to come to rest. Rows have passed ramp, seam and limits.
    While the robot follows no chunk the stamp is `ON_ARRIVAL`, and the rows lead to rest.
    now_ns: of the executor's last command. period_ns: of commands.
    """
    start, entry = executor.position, executor.entry
    if start is None:
        return None
    if entry is None:
        stamp_ns, begin_ns = ON_ARRIVAL, now_ns
        wanted = times = _spread(now_ns, executor.braking_ns(now_ns), period_ns)
    else:
        step_ns = entry.chunk.step_ns
        stamp_ns = begin_ns = entry.begin_ns + (now_ns - entry.begin_ns) // step_ns * step_ns
        wanted, times = _times_to_come(executor, entry, now_ns, begin_ns, period_ns)
    commands = executor.preview(now_ns, times)
    sent = np.isin(times[: len(commands)], wanted)
    positions = commands[sent] if sent.any() else start[None]
    offsets = [time - begin_ns for time in wanted[: len(positions)]]
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


def _times_to_come(
    executor: Executor, entry: Entry, now_ns: int, begin_ns: int, period_ns: int
) -> tuple[list[int], list[int]]:
    """When rows are due, and all times to be looked at for them.

    On the grid after begin_ns up to the last row of the chunk, and further where a limit on acceleration
    brings a joint to rest only behind it.
    """
    step_ns, acceleration = entry.chunk.step_ns, executor.limits.acceleration
    count = max(1, entry.chunk.horizon - 1 - (begin_ns - entry.begin_ns) // step_ns)
    grid = [begin_ns + step_ns * (row + 1) for row in range(count)]
    speeds = np.abs(np.diff(entry.chunk.actions[-3:], axis=0)).max(axis=0, initial=0.0) / (step_ns * 1e-9)
    rest_ns = min(round((speeds / acceleration).max() * 1e9), entry.chunk.length_ns)
    if rest_ns == 0:
        return grid, grid
    wanted = grid + _spread(grid[-1], rest_ns, step_ns)
    # Braking begins at a command, not at a row: near the last row it needs them closer together.
    before = range(grid[-1] - step_ns, grid[-1], max(period_ns, step_ns // 4))
    return wanted, sorted({*wanted, *(time for time in before if time > now_ns)})


def _spread(begin_ns: int, length_ns: int, least_ns: int) -> list[int]:
    """Some times after begin_ns, the last where the length is over; least_ns or more between them."""
    count = max(1, min(REST_ROWS, -(-length_ns // least_ns)))
    between_ns = max(least_ns, -(-length_ns // count))
    return [begin_ns + between_ns * (row + 1) for row in range(count)]
