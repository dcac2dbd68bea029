"""The camera process: pictures of several views and joint states, each stamped with when it was due.

    python -m benchmarks.e2e.camera --views base_0_rgb left_wrist_0_rgb --size 640x480 --rate 30 --seconds 20

Each view has a thread, as cameras have drivers of their own. Messages are serialized beforehand, get their
stamp just before they are due and are sent from where they lie, so that Python costs the figure nothing. At
the end one line of JSON says how many were sent of each and how late they were.
"""

from __future__ import annotations

import argparse
import json
import struct
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState

from benchmarks.e2e.serialized_publisher import SerializedPublisher
from flashrt_ros.scheduling import wake_exactly

SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
PICTURES = 4
JOINT_RATE_HZ = 100.0
OWN_CLOCK = 1.0 + 2e-4
"""A camera's oscillator beside the host's. Else frames and commands would keep the phase in which they happen
to begin: 60 Hz and 500 Hz meet in three phases only, and a run would show its luck."""

AWAKE_NS = 150_000
"""Before a frame is due: a sleeping thread would send it late by what it takes to wake."""

LEAD_S = 0.5
"""Before the first message, so that every reader has been found."""

_STAMP = struct.Struct('<iI')
_STAMP_AT = 4
"""Right behind the encapsulation header."""


def size_of(text: str) -> tuple[int, int]:
    """'640x480' -> (640, 480)."""
    width, _, height = text.partition('x')
    return int(width), int(height)


def topic_of(view: str) -> str:
    return f'/camera/{view}'


def pictures(width: int, height: int) -> list[bytearray]:
    """Serialized rgb8 pictures: gradients with noise, all different."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    found = []
    for index in range(PICTURES):
        smooth = np.stack(
            [rows * 255 // height, columns * 255 // width, (rows + columns + 40 * index) % 256], 2
        )
        noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
        message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
        message.header.frame_id = 'camera'
        message.data.frombytes(noisy.tobytes())
        found.append(bytearray(serialize_message(message)))
    return found


def stamp(message: bytearray, time_ns: int) -> None:
    _STAMP.pack_into(message, _STAMP_AT, time_ns // 10**9, time_ns % 10**9)


def stamped(message: bytearray, time_ns: int) -> bytes:
    stamp(message, time_ns)
    return bytes(message)


def wait_until(time_ns: int) -> int:
    """Returns how late it is [ns]."""
    remaining = time_ns - AWAKE_NS - time.time_ns()
    if remaining > 0:
        time.sleep(remaining * 1e-9)
    while (now_ns := time.time_ns()) < time_ns:
        pass
    return now_ns - time_ns


def run_cameras(node: Node, arguments: argparse.Namespace) -> dict[str, object]:
    """All views at the same moments, as synchronised cameras are."""
    publishers = [node.create_publisher(Image, topic_of(view), SENSOR) for view in arguments.views]
    frames = pictures(*size_of(arguments.size))
    _await_readers(publishers)
    begin_ns, period_ns = time.time_ns() + round(LEAD_S * 1e9), round(1e9 / arguments.rate * OWN_CLOCK)
    due = [begin_ns + index * period_ns for index in range(round(arguments.seconds * arguments.rate))]
    with ThreadPoolExecutor(len(publishers)) as pool:
        late_ns = list(pool.map(lambda publisher: _send(publisher, frames, due), publishers))
    late_ms = np.concatenate(late_ns) * 1e-6
    return {
        'sent': len(due),
        'late_p50_ms': float(np.median(late_ms)),
        'late_max_ms': float(late_ms.max()),
    }


def _send(publisher: Publisher, frames: Sequence[bytearray], due: Sequence[int]) -> list[int]:
    """Returns how late each was [ns]."""
    sender, frames, late_ns = SerializedPublisher(publisher), [bytearray(one) for one in frames], []
    wake_exactly()
    for index, due_ns in enumerate(due):
        message = frames[index % len(frames)]
        stamp(message, due_ns)
        late_ns.append(wait_until(due_ns))
        sender.publish(message)
    return late_ns


def run_joints(node: Node, arguments: argparse.Namespace, stop: threading.Event) -> None:
    publisher = node.create_publisher(JointState, '/joint_states', SENSOR)
    message = JointState(name=arguments.joints, position=[0.0] * len(arguments.joints))
    frame = bytearray(serialize_message(message))
    while not stop.is_set():
        publisher.publish(stamped(frame, time.time_ns()))
        time.sleep(1.0 / JOINT_RATE_HZ)


def _await_readers(publishers: Sequence[Publisher], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not all(p.get_subscription_count() for p in publishers):
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--views', nargs='+', required=True)
    parser.add_argument('--joints', nargs='+', default=['a', 'b', 'c', 'd', 'e', 'f'])
    parser.add_argument('--size', default='640x480')
    parser.add_argument('--rate', type=float, default=30.0)
    parser.add_argument('--seconds', type=float, default=20.0)
    arguments = parser.parse_args()
    rclpy.init()
    node, stop = rclpy.create_node('cameras'), threading.Event()
    joints = threading.Thread(target=run_joints, args=(node, arguments, stop))
    joints.start()
    report = run_cameras(node, arguments)
    time.sleep(LEAD_S)  # what is under way goes with its writer
    stop.set()
    joints.join()
    print(json.dumps(report), flush=True)
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
