"""Plays a bag over DDS in real time, as the robot that recorded it would send it now.

Every message goes out at its recorded time plus one constant, and its header stamp is shifted by the same
constant: ages, gaps and skew are those of the recording, and the clock is the system's, as on a robot. The
messages are sent as the bytes that were recorded; only the stamp in them is replaced.

Runs as a process of its own: python -m demo.player BAG [--duration SECONDS]
"""

from __future__ import annotations

import argparse
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy

from demo.message_types import message_class
from flashrt_ros.errors import FlashRTError
from flashrt_ros.evaluation.bag import Bag, BagError, Record, Topic, open_bag

STAMP = {0: struct.Struct('>iI'), 1: struct.Struct('<iI')}
"""A stamp in CDR bytes, by the endianness flag. It follows the 4 bytes of the encapsulation header."""

LEAD_S = 0.1
"""From the moment the first message is ready to the moment it goes out."""

DISCOVERY_S = 10.0
"""Longest wait for subscribers."""

SETTLED_S = 1.0
"""When nobody new has come for this long, discovery is taken to be over."""


def main() -> int:
    parser = argparse.ArgumentParser(description='Play a bag in real time, with stamps of now.')
    parser.add_argument('bag', type=Path)
    parser.add_argument('--duration', type=float, default=float('inf'), help='stop after this many seconds')
    arguments = parser.parse_args()
    rclpy.init()
    try:
        with open_bag(arguments.bag) as bag:
            play(bag, arguments.duration)
    except FlashRTError as error:
        print(f'player: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        rclpy.try_shutdown()
    return 0


def play(bag: Bag, duration: float) -> None:
    """Publish every message of the bag when it is due. Raises BagError for messages without a header."""
    node = rclpy.create_node('player')
    publishers = {topic.name: _publisher(node, topic) for topic in bag.topics.values()}
    check_headers(bag)
    await_subscribers(node, publishers)
    records = [record for record in bag.records() if record.time_ns - bag.start_ns < duration * 1e9]
    # ROS time and the recorded stamps are integers of ns; a float would lose a quarter of a microsecond.
    shift_ns = time.time_ns() + round(LEAD_S * 1e9) - bag.start_ns
    for record in records:
        _sleep_until(record.time_ns + shift_ns)
        publishers[record.topic].publish(shifted(record, shift_ns))
    node.get_logger().info(f'played {len(records)} messages')
    time.sleep(LEAD_S)  # A writer that is destroyed takes what it has not sent yet with it.
    node.destroy_node()


def shifted(record: Record, shift_ns: int) -> bytes:
    """The message's CDR bytes with its header stamp moved by `shift_ns`.

    A message that begins with std_msgs/Header has its stamp right behind the encapsulation header.
    """
    layout = STAMP[record.data[1] & 1]
    sec, nanosec = layout.unpack_from(record.data, 4)
    stamp = sec * 10**9 + nanosec + shift_ns
    return record.data[:4] + layout.pack(stamp // 10**9, stamp % 10**9) + record.data[4 + layout.size :]


def check_headers(bag: Bag) -> None:
    for topic in bag.topics.values():
        first = next(line for line in topic.definition.splitlines() if line and not line.startswith('#'))
        if first.split()[0] not in ('std_msgs/Header', 'std_msgs/msg/Header', 'Header'):
            raise BagError(
                f"{topic.type} on '{topic.name}' does not begin with a header, so it has no stamp to shift",
                str(bag.path),
                'leave the topic out of the bag',
            )


def _publisher(node: Node, topic: Topic) -> Publisher:
    reliability = ReliabilityPolicy.RELIABLE if topic.reliable else ReliabilityPolicy.BEST_EFFORT
    return node.create_publisher(
        message_class(topic.type), topic.name, QoSProfile(depth=10, reliability=reliability)
    )


def await_subscribers(node: Node, publishers: Mapping[str, Publisher]) -> None:
    """Wait until nobody new has come for a while, so that the first messages reach everyone.

    A topic nobody wants is played anyway.
    """
    deadline, settled, counts = time.monotonic() + DISCOVERY_S, 0.0, {}
    while (now := time.monotonic()) < deadline:
        before, counts = counts, {topic: p.get_subscription_count() for topic, p in publishers.items()}
        if counts != before or not all(counts.values()):
            settled = now + SETTLED_S
        if now >= settled:
            return
        time.sleep(0.02)
    lonely = ', '.join(topic for topic, count in counts.items() if not count)
    if lonely:
        node.get_logger().warning(f'nobody subscribes to {lonely}')


def _sleep_until(time_ns: int) -> None:
    remaining = time_ns - time.time_ns()
    if remaining > 0:
        time.sleep(remaining / 1e9)


if __name__ == '__main__':
    sys.exit(main())
