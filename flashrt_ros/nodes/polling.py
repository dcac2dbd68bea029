"""Subscriptions whose messages do not wake the executor: they are taken when somebody wants them.

For every message an rclpy executor builds its set of what to wait for anew, which takes it longer than all
that is done with a joint state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.node import Node
from rclpy.subscription import Subscription

from flashrt_ros.nodes.qos import LATEST_STATES, subscribe_latest


class Unattended(MutuallyExclusiveCallbackGroup):
    """Keeps executors from taking the messages of a subscription themselves; its events are attended to."""

    def can_execute(self, entity: Any) -> bool:
        return not isinstance(entity, Subscription) and super().can_execute(entity)


class Polled(MutuallyExclusiveCallbackGroup):
    """Keeps executors from a subscription and its events, too.

    rmw_fastrtps waits for both on one condition: with the events alone in its set an executor would wake,
    find nothing and wait again, without a pause, for as long as a message lies there.
    """

    def can_execute(self, entity: Any) -> bool:
        return False


def never(message: Any) -> None:
    """The callback of a subscription whose messages are taken otherwise."""


def subscribe_polled(node: Node, message_type: type, topic: str) -> Subscription[Any]:
    """A subscription to sensor data for `serialized`.

    Nothing is told of a publisher with an incompatible QoS, which only `qos_overrides` can make one.
    """
    return subscribe_latest(node, message_type, topic, never, Polled(), LATEST_STATES)


def serialized(subscription: Subscription[Any]) -> Iterator[bytes]:
    """All messages that have come since the last call, oldest first."""
    while True:
        try:
            with subscription.handle:
                taken = subscription.handle.take_message(subscription.msg_type, True)
        except InvalidHandle:  # destroyed meanwhile
            return
        if taken is None:
            return
        yield taken[0]
