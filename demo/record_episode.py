"""Records the demo's episode: an SO-101 arm picks a cube up and places it, seen by two cameras.

    pip install -r demo/requirements-record.txt
    MUJOCO_GL=egl python -m demo.record_episode demo/episode

The result is an MCAP rosbag2 that `ros2 bag info` and `ros2 bag play` accept. Header stamps are sensor time:
the simulated clock, counted from `EPOCH`; the bag's own times are the same. The cameras are not synchronised:
the wrist camera sees the middle of each period of the front camera.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from demo.so101_simulation import JOINTS, Cameras, HalfTick, PickAndPlace

EPOCH = 1_795_348_800
"""Start of simulated time: 2026-11-22 12:00:00 UTC, in seconds of the Unix epoch."""

WIDTH, HEIGHT, JPEG_QUALITY = 320, 240, 72
TYPES = get_typestore(Stores.ROS2_KILTED)
IMAGE, JOINT_STATE, TRAJECTORY = (
    'sensor_msgs/msg/CompressedImage',
    'sensor_msgs/msg/JointState',
    'trajectory_msgs/msg/JointTrajectory',
)
FRONT, WRIST = '/camera/front/image_raw/compressed', '/camera/wrist/image_raw/compressed'
STATES, COMMANDS = '/joint_states', '/demo/recorded_commands'
TOPICS = {FRONT: IMAGE, WRIST: IMAGE, STATES: JOINT_STATE, COMMANDS: TRAJECTORY}


@dataclass(frozen=True)
class Record:
    """A message on its way into the bag. stamp: ns of the Unix epoch."""

    stamp: int
    topic: str
    message: object


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bag', type=Path, help='directory to create')
    parser.add_argument('--seed', type=int, default=284, help='places cube and goal; 284 sets them far apart')
    arguments = parser.parse_args()

    episode = PickAndPlace(arguments.seed)
    moments = list(episode.run())
    if not episode.succeeded:
        raise SystemExit(f'seed {arguments.seed}: the cube did not reach the goal; try another seed')
    print(f'{len(moments)} moments, {moments[-1].time:.1f} s; rendering')
    with ProcessPoolExecutor(2, initializer=_open_cameras, initargs=(episode.goal,)) as pool:
        frames = list(pool.map(_photograph, moments, chunksize=20))
    write(arguments.bag, records(moments, frames))
    size = sum(path.stat().st_size for path in arguments.bag.iterdir())
    print(f'{arguments.bag}: {size / 1e6:.2f} MB')


def records(moments: list[HalfTick], frames: list[bytes]) -> Iterator[Record]:
    """Everything the robot says, in the order in which it says it."""
    for moment, frame in zip(moments, frames, strict=True):
        stamp = EPOCH * 10**9 + round(moment.time * 1e9)
        yield Record(stamp, STATES, _joint_state(stamp, moment))
        yield Record(stamp, WRIST if moment.second else FRONT, _image(stamp, frame, moment.second))
        if not moment.second:
            yield Record(stamp, COMMANDS, _command(stamp, moment))


def write(path: Path, messages: Iterator[Record]) -> None:
    """Write an MCAP rosbag2 with the QoS that such topics have on a robot."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        connections = {
            topic: bag.add_connection(topic, kind, typestore=TYPES, offered_qos_profiles=[_qos(kind)])
            for topic, kind in TOPICS.items()
        }
        for record in messages:
            data = TYPES.serialize_cdr(record.message, TOPICS[record.topic])
            bag.write(connections[record.topic], record.stamp, data)


_cameras: Cameras


def _open_cameras(goal: np.ndarray) -> None:
    """Each rendering process has an OpenGL context of its own."""
    global _cameras
    _cameras = Cameras(goal, WIDTH, HEIGHT)


def _photograph(moment: HalfTick) -> bytes:
    picture = _cameras.look('wrist' if moment.second else 'front', moment.state)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    encoded, jpeg = cv2.imencode('.jpg', picture[:, :, ::-1], options)
    assert encoded
    return jpeg.tobytes()


def _header(stamp: int, frame: str) -> object:
    time = TYPES.types['builtin_interfaces/msg/Time'](sec=stamp // 10**9, nanosec=stamp % 10**9)
    return TYPES.types['std_msgs/msg/Header'](stamp=time, frame_id=frame)


def _image(stamp: int, jpeg: bytes, wrist: bool) -> object:
    frame = 'wrist_camera_optical_frame' if wrist else 'front_camera_optical_frame'
    # The format string of image_transport's compressed plugin for a colour camera.
    return TYPES.types[IMAGE](
        header=_header(stamp, frame),
        format='rgb8; jpeg compressed bgr8',
        data=np.frombuffer(jpeg, np.uint8),
    )


def _joint_state(stamp: int, moment: HalfTick) -> object:
    return TYPES.types[JOINT_STATE](
        header=_header(stamp, 'base_link'),
        name=list(JOINTS),
        position=moment.positions,
        velocity=moment.velocities,
        effort=np.zeros(0),
    )


def _command(stamp: int, moment: HalfTick) -> object:
    now = TYPES.types['builtin_interfaces/msg/Duration'](sec=0, nanosec=0)
    empty = np.zeros(0)
    point = TYPES.types['trajectory_msgs/msg/JointTrajectoryPoint'](
        positions=moment.command,
        velocities=empty,
        accelerations=empty,
        effort=empty,
        time_from_start=now,
    )
    return TYPES.types[TRAJECTORY](
        header=_header(stamp, 'base_link'), joint_names=list(JOINTS), points=[point]
    )


def _qos(kind: str) -> Qos:
    """Cameras send best effort, everything else reliable; nothing is kept for late joiners."""
    unset = QosTime(sec=0, nsec=0)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=5 if kind == IMAGE else 10,
        reliability=QosReliability.BEST_EFFORT if kind == IMAGE else QosReliability.RELIABLE,
        durability=QosDurability.VOLATILE,
        deadline=unset,
        lifespan=unset,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=unset,
        avoid_ros_namespace_conventions=False,
    )


if __name__ == '__main__':
    main()
