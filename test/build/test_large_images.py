"""Large images between two processes over best effort, with the Fast DDS profile that the project ships."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .tool import ROOT

# Fast DDS 2, which Jazzy has, reads the older name only; Fast DDS 3 warns about it.
VARIABLE = f'FAST{"RTPS" if os.environ.get("ROS_DISTRO") == "jazzy" else "DDS"}_DEFAULT_PROFILES_FILE'
PROFILE = ROOT / 'config/fastdds_large_images.xml'
FRAMES = 30
RATE_HZ = 30
SEGMENT_BYTES = 64 * 1024 * 1024

PUBLISHER = """
import sys, time
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

width, height, frames, rate = map(int, sys.argv[1:])
rclpy.init()
node = rclpy.create_node('camera')
publisher = node.create_publisher(Image, 'image', qos_profile_sensor_data)
image = Image(width=width, height=height, encoding='rgb8', step=3 * width, data=bytes(3 * width * height))
deadline = time.monotonic() + 20
while publisher.get_subscription_count() == 0 and time.monotonic() < deadline:
    time.sleep(0.05)
due = time.monotonic()
for frame in range(frames):
    image.header.frame_id = str(frame)
    publisher.publish(image)
    due += 1 / rate
    time.sleep(max(0, due - time.monotonic()))
time.sleep(0.5)
"""


@pytest.fixture
def camera(ros_domain, monkeypatch):
    """Starts a process that publishes images; both processes use the profile."""
    monkeypatch.setenv(VARIABLE, str(PROFILE))
    processes = []

    def start(width: int, height: int) -> subprocess.Popen:
        arguments = [str(value) for value in (width, height, FRAMES, RATE_HZ)]
        processes.append(
            subprocess.Popen([sys.executable, '-c', PUBLISHER, *arguments], env=os.environ.copy())
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.ros
@pytest.mark.parametrize(('width', 'height'), [(640, 480), (1280, 720)])
def test_best_effort_images_arrive(camera, width, height):
    rclpy = pytest.importorskip('rclpy', reason='needs ROS 2')
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('viewer', context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    received: list[Image] = []
    node.create_subscription(Image, 'image', received.append, qos_profile_sensor_data)
    process = camera(width, height)
    deadline = time.monotonic() + 30
    largest_segment = 0
    while process.poll() is None and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)
        largest_segment = max(largest_segment, shared_memory_of(process.pid))
    node.destroy_node()
    rclpy.shutdown(context=context)
    assert process.returncode == 0
    assert largest_segment >= SEGMENT_BYTES, 'the publisher does not use the profile'
    assert len(received) >= 0.9 * FRAMES
    assert all(len(image.data) == 3 * width * height for image in received)


def shared_memory_of(process: int) -> int:
    """Bytes of the largest Fast DDS segment that a process has mapped."""
    try:
        maps = Path(f'/proc/{process}/maps').read_text().splitlines()
    except OSError:
        return 0
    bounds = [
        line.split()[0].split('-')
        for line in maps
        if '/dev/shm/fastdds_' in line or '/dev/shm/fastrtps_' in line
    ]
    return max((int(end, 16) - int(start, 16) for start, end in bounds), default=0)
