"""The frames of one camera from ROS: taken as they were sent where that can be done, else as typed messages.

`DirectSource` lets the middleware write each message into a slot of a ring and reads nothing but its header:
Fast DDS itself where our library for it was built, else rcl. `TypedSource` is what every rclpy has. All give
the same frames to the same sink.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from flashrt_ros.errors import BackendError
from flashrt_ros.frame import Frame, FrameSink, FrameSource
from flashrt_ros.ingest.cdr import MalformedMessage, Repeated
from flashrt_ros.ingest.ring import FrameRing, Slot
from flashrt_ros.ingest.typed import FRAMES
from flashrt_ros.nodes import fastdds_take
from flashrt_ros.nodes.attending import Attendant, WaitingAttendant
from flashrt_ros.nodes.clock import ros_now_ns
from flashrt_ros.nodes.fastdds_take import FastDdsTake
from flashrt_ros.nodes.polling import Polled, never
from flashrt_ros.nodes.qos import LATEST_FRAMES, subscribe_latest
from flashrt_ros.nodes.serialized_take import SerializedTake, unavailable
from flashrt_ros.nodes.slot_take import SlotTake, TakeError

ASIDE_S = 2e-3
"""What a thread rests for behind a frame: those that wait for Python's lock with one of the same moment, or
with what is made of them all, are in more of a hurry."""

_TYPES = {'raw': Image, 'compressed': CompressedImage}
"""Transport of a camera -> message type."""


class TypedSource:
    """Deserialized by rclpy; the frames share the memory of the messages."""

    def __init__(self, node: Node, topic: str, transport: str) -> None:
        self._node, self._topic, self._transport = node, topic, transport

    def start(self, sink: FrameSink) -> Callable[[], None]:
        """See `FrameSource.start`."""
        clock, make = self._node.get_clock(), FRAMES[self._transport]
        sequence = 0

        def keep(message: Any) -> None:
            nonlocal sequence
            sequence += 1
            sink.keep(make(message, ros_now_ns(clock), sequence))

        subscription = subscribe_latest(self._node, _TYPES[self._transport], self._topic, keep)

        def stop() -> None:
            self._node.destroy_subscription(subscription)

        return stop


class DirectSource:
    """Serialized messages straight into the ring. by_rcl: although Fast DDS could be asked itself."""

    def __init__(self, node: Node, topic: str, transport: str, ring: FrameRing, by_rcl: bool = False) -> None:
        self._node, self._topic, self._transport, self._ring = node, topic, transport, ring
        self._by_rcl = by_rcl or bool(fastdds_take.unavailable())

    def start(self, sink: FrameSink) -> Callable[[], None]:
        """See `FrameSource.start`."""
        node = self._node
        subscription = subscribe_latest(
            node, _TYPES[self._transport], self._topic, never, Polled(), LATEST_FRAMES
        )
        attendant = self._attendant(subscription, sink)

        def stop() -> None:
            attendant.stop()
            node.destroy_subscription(subscription)

        return stop

    def _attendant(self, subscription: Subscription[Any], sink: FrameSink) -> Attendant:
        node, ring = self._node, self._ring
        if self._by_rcl:
            frames = _Frames(node, SerializedTake(subscription, ring), self._transport, ring, sink)
            return Attendant(node, subscription, frames.take_one)
        take = FastDdsTake(subscription, ring)
        frames = _Frames(node, take, self._transport, ring, sink)
        return WaitingAttendant(node, subscription, frames.take_one, take.wake, take.close)


def frame_source(
    node: Node, topic: str, transport: str, wanted: str, make_ring: Callable[[], FrameRing]
) -> FrameSource:
    """The source that `ingest.source` asks for. wanted: 'direct', 'typed', or 'auto' for the better one.

    Raises BackendError where 'direct' is asked for and cannot be had.
    """
    why_not = 'ingest.source says so' if wanted == 'typed' else unavailable()
    if wanted == 'direct' and why_not:
        raise BackendError(
            f'messages cannot be taken serialized here ({why_not})', 'ingest.source', "choose 'auto'"
        )
    node.get_logger().info(f"frames of '{topic}': {way_of_taking(why_not)}")
    if why_not:
        return TypedSource(node, topic, transport)
    return DirectSource(node, topic, transport, make_ring())


def way_of_taking(why_not_direct: str) -> str:
    """A few words for people."""
    if why_not_direct:
        return f'typed ({why_not_direct})'
    why_not = fastdds_take.unavailable()
    return f'direct, by rcl with a copy more ({why_not})' if why_not else 'direct, from Fast DDS'


class _Frames:
    """Takes the messages of a subscription, one at each call; the last one wins.

    What can be made of a message before it comes, if it is like the one before, is ready by then.
    """

    def __init__(self, node: Node, take: SlotTake, transport: str, ring: FrameRing, sink: FrameSink) -> None:
        self._clock, self._simulated = node.get_clock(), False
        self._take, self._layout = take, Repeated(transport)
        self._ring, self._sink = ring, sink
        self._sequence = 0
        self._expected: Frame | None = None
        self._prepare()

    def take_one(self) -> None:
        size = None
        try:
            size = self._take()
            if size is None:
                return
            self._sequence += 1
            if self._take.slot is not None:
                self._sink.keep(self._frame(self._take.slot, size))
        except (TakeError, MalformedMessage) as error:
            self._sequence += isinstance(error, TakeError)
            self._sink.drop(str(error))
        finally:
            if size is not None:
                self._take.rest(ASIDE_S)
            self._prepare()

    def _frame(self, slot: Slot, size: int) -> Frame:
        take = self._take
        received_ns = ros_now_ns(self._clock) if self._simulated else take.taken_ns
        if self._expected is not None and take.stamp_ns is not None:
            return self._expected.arrived(take.stamp_ns, received_ns, self._sequence)
        return self._ring.frame(slot, self._layout(slot.bytes(size)), received_ns, self._sequence)

    def _prepare(self) -> None:
        self._expected = None
        self._take.prepare()
        self._simulated = self._clock.ros_time_is_active
        slot, layout = self._take.slot, self._layout.known
        if slot is not None and layout is not None and layout.offset + layout.size <= slot.capacity:
            self._expected = self._ring.frame(slot, layout, 0, 0)
            self._take.expect(self._layout.head, self._layout.mask, layout.offset + layout.size)
