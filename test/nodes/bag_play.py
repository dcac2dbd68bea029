"""Stands in for `ros2 bag play`, which no wheel brings: the same topics, stamps and /clock.

python bag_play.py bag play BAG --clock 200 --rate 1.0 --delay 3.0
"""

import argparse
import sys
import time

import rclpy
from builtin_interfaces.msg import Time
from rosgraph_msgs.msg import Clock

from demo.message_types import message_class
from demo.player import await_subscribers
from flashrt_ros.evaluation.bag import open_bag


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('words', nargs=2)
    parser.add_argument('bag')
    parser.add_argument('--clock', type=float, default=40.0)
    parser.add_argument('--rate', type=float, default=1.0)
    parser.add_argument('--delay', type=float, default=0.0)
    arguments = parser.parse_args()
    rclpy.init()
    node = rclpy.create_node('bag_play')
    with open_bag(arguments.bag) as bag:
        publishers = {
            t.name: node.create_publisher(message_class(t.type), t.name, 10) for t in bag.topics.values()
        }
        clock = node.create_publisher(Clock, '/clock', 10)
        await_subscribers(node, publishers | {'/clock': clock})
        time.sleep(arguments.delay)
        play(bag, publishers, clock, arguments.clock, arguments.rate)
    time.sleep(0.1)
    node.destroy_node()
    rclpy.try_shutdown()


def play(bag, publishers, clock, clock_hz, rate):
    records, step_ns, now_ns = bag.records(), round(1e9 / clock_hz * rate), bag.start_ns
    record, begin = next(records, None), time.monotonic_ns()
    while record is not None:
        wait_ns = begin + (now_ns - bag.start_ns) / rate - time.monotonic_ns()
        time.sleep(max(0.0, wait_ns * 1e-9))
        clock.publish(Clock(clock=Time(sec=now_ns // 10**9, nanosec=now_ns % 10**9)))
        now_ns += step_ns
        while record is not None and record.time_ns < now_ns:
            publishers[record.topic].publish(record.data)
            record = next(records, None)


if __name__ == '__main__':
    sys.exit(main())
