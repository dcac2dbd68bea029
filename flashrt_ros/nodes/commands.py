"""The command messages that controllers understand, one type for each `output.type`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from flashrt_ros.nodes.messages import to_duration, to_time

MakeCommand = Callable[[np.ndarray, int], Any]
"""(positions float64 [D] in rad or m, now [ROS time, ns]) -> message."""


def command_type(output_type: str, joints: Sequence[str], period_ns: int) -> tuple[type, MakeCommand]:
    """The message class of an output type, and the function that fills one."""
    names = list(joints)
    makers: dict[str, tuple[type, MakeCommand]] = {
        'joint_trajectory': (JointTrajectory, _trajectory_maker(names, period_ns)),
        'float64_multi_array': (
            Float64MultiArray,
            lambda positions, _: Float64MultiArray(data=positions.tolist()),
        ),
        'joint_state': (JointState, _joint_state_maker(names)),
    }
    return makers[output_type]


def _trajectory_maker(names: list[str], period_ns: int) -> MakeCommand:
    """One point, to be reached a control period from now.

    The stamp stays 0, which joint_trajectory_controller takes as 'now': with a real stamp it would reject the
    command wherever its host's clock is a control period ahead.
    """
    reach_in = to_duration(period_ns)

    def make(positions: np.ndarray, _: int) -> JointTrajectory:
        point = JointTrajectoryPoint(positions=positions.tolist(), time_from_start=reach_in)
        return JointTrajectory(joint_names=names, points=[point])

    return make


def _joint_state_maker(names: list[str]) -> MakeCommand:
    def make(positions: np.ndarray, now_ns: int) -> JointState:
        message = JointState(name=names, position=positions.tolist())
        message.header.stamp = to_time(now_ns)
        return message

    return make
