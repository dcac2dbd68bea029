"""Qualities of service, and subscriptions for sensor data of which only the latest counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

LATEST_SENSOR = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE
)
"""A best-effort reader matches reliable and best-effort writers; depth 1: a newer frame wins."""

LATEST_FRAMES = QoSProfile(
    depth=4, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE
)
"""For a reader that takes all that is there: what comes while it is held up is late, but not lost."""

LATEST_STATES = QoSProfile(
    depth=64, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE
)
"""For a reader that looks at all that has come every 20 ms, from a robot that sends 1000 a second."""

COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
"""For chunks and commands. Never transient local: a late joiner would execute what is long over."""

RECORD = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
"""For what people look at and record."""


def subscribe_latest(
    node: Node,
    message_type: type,
    topic: str,
    callback: Callable[[Any], None],
    callback_group: CallbackGroup | None = None,
    qos: QoSProfile = LATEST_SENSOR,
) -> Subscription[Any]:
    """Subscribe to sensor data. The QoS can be overridden by the usual qos_overrides parameters."""

    def incompatible(event: QoSRequestedIncompatibleQoSInfo) -> None:
        node.get_logger().warning(
            f"a publisher on '{topic}' offers an incompatible QoS ({event.last_policy_kind}): "
            'nothing of it will arrive; set qos_overrides for this topic'
        )

    return node.create_subscription(
        message_type,
        topic,
        callback,
        qos,
        callback_group=callback_group,
        event_callbacks=SubscriptionEventCallbacks(incompatible_qos=incompatible),
        qos_overriding_options=QoSOverridingOptions.with_default_policies(),
    )
