"""The process that feeds the streamer: chunks of 50 rows and joint states.

    python -m benchmarks.streamer.feed --joint-rate 200 --chunk-rate 10

Joint states are serialized beforehand, so that this process takes little of the cores that are measured.
"""

from __future__ import annotations

import argparse
import math
import signal
import struct
import threading
import time

import numpy as np
import rclpy
from flashrt_ros.msg import ActionChunk
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import JointState

from benchmarks.streamer.setting import JOINTS
from flashrt_ros.control import Chunk
from flashrt_ros.nodes.messages import chunk_to_message

STEP_NS = 20_000_000
ROWS = 50
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_STAMP, _STAMP_AT = struct.Struct('<iI'), 4


def rows_at(start_ns: int) -> np.ndarray:
    """float64 [ROWS, D], rad: the same slow movement whatever chunk it is cut from."""
    times = start_ns % 10**12 * 1e-9 + np.arange(ROWS) * STEP_NS * 1e-9
    return 0.5 * np.sin(2 * math.pi * 0.2 * times[:, None] + np.arange(len(JOINTS)))


def send_joints(node: Node, rate_hz: float, stop: threading.Event) -> None:
    publisher = node.create_publisher(JointState, '/joint_states', SENSOR)
    frame = bytearray(serialize_message(JointState(name=JOINTS, position=[0.0] * len(JOINTS))))
    while not stop.wait(1.0 / rate_hz):
        now_ns = time.time_ns()
        _STAMP.pack_into(frame, _STAMP_AT, now_ns // 10**9, now_ns % 10**9)
        publisher.publish(bytes(frame))


def send_chunks(node: Node, rate_hz: float, stop: threading.Event) -> None:
    publisher = node.create_publisher(ActionChunk, 'action_chunk', 1)
    sequence = 0
    while not stop.wait(1.0 / rate_hz):
        now_ns = time.time_ns()
        sequence += 1
        chunk = Chunk('bench', JOINTS, rows_at(now_ns), now_ns, now_ns, STEP_NS, 1, sequence)
        publisher.publish(chunk_to_message(chunk, now_ns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--joint-rate', type=float, default=200.0)
    parser.add_argument('--chunk-rate', type=float, default=10.0)
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node = rclpy.create_node('feed')
    joints = threading.Thread(target=send_joints, args=(node, arguments.joint_rate, stop))
    joints.start()
    send_chunks(node, arguments.chunk_rate, stop)
    joints.join()
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
