"""Joint states that do not wake the executor: they are taken when somebody wants them.

For every message an rclpy executor builds its set of what to wait for anew, which takes it longer than all
that is done with a joint state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.node import Node
from sensor_msgs.msg import JointState

from flashrt_ros.nodes.qos import LATEST_STATES, subscribe_latest


class Polled(MutuallyExclusiveCallbackGroup):
    """Keeps executors from a subscription and its events.

    rmw_fastrtps waits for both on one condition: with the events alone in its set an executor would wake,
    find nothing and wait again, without a pause, for as long as a message lies there.
    """

    def can_execute(self, entity: Any) -> bool:
        return False


def never(message: Any) -> None:
    """The callback of a subscription whose messages are taken otherwise."""


class PolledStates:
    """A subscription to joint states; `take` gives `keep` all that have come since, oldest first.

    keep: is called with a serialized JointState and when it came [ROS time, ns]. Any thread may `take`.
    Nothing is told of a publisher with an incompatible QoS, which only `qos_overrides` can make one.
    """

    def __init__(self, node: Node, topic: str, keep: Callable[[bytes, int], None]) -> None:
        self.subscription = subscribe_latest(node, JointState, topic, never, Polled(), LATEST_STATES)
        self._keep, self._clock = keep, node.get_clock()
        self._lock = threading.Lock()

    def take(self) -> None:
        with self._lock:
            for message, came_ns in self._taken():
                # On simulated time nobody knows when it came but by asking often.
                by_clock = self._clock.ros_time_is_active or not came_ns
                self._keep(message, self._clock.now().nanoseconds if by_clock else came_ns)

    def _taken(self) -> Iterator[tuple[bytes, int]]:
        handle = self.subscription.handle
        while True:
            try:
                with handle:
                    taken = handle.take_message(JointState, True)
            except InvalidHandle:  # destroyed meanwhile
                return
            if taken is None:
                return
            yield taken[0], taken[1]['received_timestamp']
