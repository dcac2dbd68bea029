"""The robot's URDF, from a file or from the topic of robot_state_publisher, as joint limits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.control.urdf import JointLimits, read_limits
from flashrt_ros.errors import ConfigError
from flashrt_ros.nodes.operator import LATCHED

WAIT_S = 5.0
"""For the latched description; robot_state_publisher has sent it long before, or is not there."""


def described_limits(node: Node, config: RobotConfig) -> dict[str, JointLimits]:
    """Limits of the configured joints by the URDF; empty where none is configured.

    Raises ConfigError where it cannot be read, does not come, or does not know a joint.
    """
    robot = config.robot
    if robot.description is not None:
        path = Path(robot.description)
        if not path.is_file():
            raise ConfigError('there is no such file', str(path), 'correct robot.description')
        return read_limits(path.read_text(encoding='utf-8'), config.joint_names, str(path))
    if robot.description_topic is None:
        return {}
    text = _receive(node, robot.description_topic)
    return read_limits(text, config.joint_names, robot.description_topic)


def _receive(node: Node, topic: str) -> str:
    """Wait for one message, with an executor of its own: the node's is busy with the transition."""
    received: list[Any] = []
    helper = Node(f'{node.get_name()}_description', context=node.context, use_global_arguments=False)
    group = MutuallyExclusiveCallbackGroup()
    helper.create_subscription(String, topic, received.append, LATCHED, callback_group=group)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(helper)
    deadline = time.monotonic() + WAIT_S
    while not received and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    helper.destroy_node()
    if not received:
        raise ConfigError(
            f'no description came within {WAIT_S:g} s',
            topic,
            'start robot_state_publisher, or give robot.description',
        )
    return str(received[0].data)
