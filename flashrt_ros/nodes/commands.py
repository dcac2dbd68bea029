"""The command messages that controllers understand, one type for each `output.type`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from flashrt_ros.control.motion import Command
from flashrt_ros.control.trajectory import Trajectory
from flashrt_ros.nodes.messages import to_duration, to_time

MakeCommand = Callable[[Command, int], Any]
"""(command, now [ROS time, ns]) -> message, or its bytes."""

MESSAGE_TYPES: dict[str, type] = {
    'joint_trajectory': JointTrajectory,
    'float64_multi_array': Float64MultiArray,
    'joint_state': JointState,
}


def command_maker(output_type: str, joints: Sequence[str], period_ns: int) -> MakeCommand:
    """The function that fills a message of this output type, for one command."""
    names = list(joints)
    makers: dict[str, MakeCommand] = {
        'joint_trajectory': _trajectory_maker(names, period_ns),
        'float64_multi_array': lambda command, _: Float64MultiArray(data=command.positions.tolist()),
        'joint_state': _joint_state_maker(names),
    }
    return makers[output_type]


def trajectory_message(joints: Sequence[str], trajectory: Trajectory) -> JointTrajectory:
    """All rows of a chunk that are still to come, with velocities, on the time grid."""
    message = JointTrajectory(joint_names=list(joints))
    message.header.stamp = to_time(trajectory.stamp_ns)
    message.points = [
        JointTrajectoryPoint(
            positions=positions.tolist(), velocities=velocities.tolist(), time_from_start=to_duration(offset)
        )
        for positions, velocities, offset in zip(
            trajectory.positions, trajectory.velocities, trajectory.offsets_ns, strict=True
        )
    ]
    return message


def _trajectory_maker(names: list[str], period_ns: int) -> MakeCommand:
    """One point, to be reached a control period from now.

    The stamp stays 0, which joint_trajectory_controller takes as 'now': with a real stamp it would reject the
    command wherever its host's clock is a control period ahead.
    """
    reach_in = to_duration(period_ns)

    def make(command: Command, _: int) -> JointTrajectory:
        point = JointTrajectoryPoint(positions=command.positions.tolist(), time_from_start=reach_in)
        if command.zero_velocity:
            point.velocities = np.zeros(len(names)).tolist()
        return JointTrajectory(joint_names=names, points=[point])

    return make


def _joint_state_maker(names: list[str]) -> MakeCommand:
    def make(command: Command, now_ns: int) -> JointState:
        message = JointState(name=names, position=command.positions.tolist())
        if command.zero_velocity:
            message.velocity = np.zeros(len(names)).tolist()
        message.header.stamp = to_time(now_ns)
        return message

    return make
