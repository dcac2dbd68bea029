"""How long a new process takes to find a node of the same machine, with this package's profile and without.

    python -m benchmarks.bench_discovery [--processes 40]

Each process counts from the creation of its node until it sees the name and the publisher of a node that was
there before. One setting after the other, on the loopback interface.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

PROFILE = Path(__file__).parents[1] / 'config' / 'fastdds_large_images.xml'
KILTED, JAZZY = 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'
NAME, TOPIC = 'already_there', 'already_there/topic'
BE_THERE = f"""
import rclpy
from std_msgs.msg import Bool
rclpy.init()
node = rclpy.create_node({NAME!r})
node.create_publisher(Bool, {TOPIC!r}, 1)
print('there', flush=True)
rclpy.spin(node)
"""
FIND = f"""
import rclpy, time
rclpy.init()
begin, node = time.monotonic(), rclpy.create_node('searching')
while not ({NAME!r} in node.get_node_names() and node.count_publishers({TOPIC!r})):
    time.sleep(0.002)
print(time.monotonic() - begin)
"""


def found_after_s(profile: Path | None, processes: int) -> list[float]:
    """Seconds that each process took, one after the other. profile: None for Fast DDS's defaults."""
    environment = {key: value for key, value in os.environ.items() if key not in (KILTED, JAZZY)}
    environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    if profile is not None:
        environment[JAZZY if os.environ.get('ROS_DISTRO') == 'jazzy' else KILTED] = str(profile)

    def start(code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, '-c', code], env=environment, stdout=subprocess.PIPE, text=True
        )

    there = start(BE_THERE)
    try:
        assert there.stdout is not None
        there.stdout.readline()
        return [float(start(FIND).communicate(timeout=60)[0]) for _ in range(processes)]
    finally:
        there.kill()
        there.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--processes', type=int, default=40, help='of each setting (%(default)s)')
    processes = parser.parse_args().processes
    print(f'{"[s]":12} {"p50":>6} {"p90":>6} {"max":>6}')
    for label, profile in (('defaults', None), ('profile', PROFILE)):
        seconds = found_after_s(profile, processes)
        p50, p90 = np.percentile(seconds, [50, 90])
        print(f'{label:12} {p50:6.2f} {p90:6.2f} {max(seconds):6.2f}')


if __name__ == '__main__':
    main()
