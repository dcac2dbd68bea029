"""What people do to the streamer: four services, a deadman topic, and the stop topic that tells others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.nodes.qos import COMMAND

ACTS = ('hold', 'resume', 'estop', 'reset')
"""Services of type std_srvs/Trigger, in the namespace of the node."""

LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


class OperatorInterface:
    """act: does one of `ACTS`. deadman: gets what the deadman says."""

    def __init__(
        self,
        node: LifecycleNode,
        config: RobotConfig,
        act: Callable[[str], tuple[bool, str]],
        deadman: Callable[[bool], None],
    ) -> None:
        self._node = node
        self._services = [
            node.create_service(Trigger, f'~/{what}', functools.partial(self._serve, act, what))
            for what in ACTS
        ]
        topic = config.safety.deadman_topic
        self._deadman = (
            None
            if topic is None
            else node.create_subscription(Bool, topic, lambda message: deadman(message.data), COMMAND)
        )
        topic = config.safety.stop_topic
        self._stop = None if topic is None else node.create_publisher(Bool, topic, LATCHED)

    def tell_stopped(self, stopped: bool) -> None:
        if self._stop is not None:
            self._stop.publish(Bool(data=stopped))

    def destroy(self) -> None:
        for service in self._services:
            self._node.destroy_service(service)
        if self._deadman is not None:
            self._node.destroy_subscription(self._deadman)
        if self._stop is not None:
            self._node.destroy_publisher(self._stop)

    def _serve(
        self, act: Callable[[str], tuple[bool, str]], what: str, request: Any, response: Any
    ) -> Trigger.Response:
        response.success, response.message = act(what)
        self._node.get_logger().warning(f'{what}: {response.message}')
        return response
