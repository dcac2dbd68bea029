"""Records the demo's episode: a simulated SO-101 picks a cube up and places it, as often as seeds are given.

    tools/in_env python -m demo.record_episode demo/episode        # needs make simulation

The scripted expert of `training` is in command, on layouts that no policy was trained on.
Between two layouts the robot is put home at once. The result is an MCAP rosbag2 that `ros2 bag info` and
`ros2 bag play` accept. Header stamps are sensor time: the simulated clock, counted from `EPOCH`; the bag's
own times are the same. The cameras are not synchronised: the wrist camera sees the middle of each period of
the front camera.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from flashrt_ros.simulation.cameras import Cameras
from flashrt_ros.simulation.session import JOINTS, Session
from flashrt_ros.simulation.so101 import so101
from flashrt_ros.simulation.world import World
from training.expert import TICK_S, Expert

EPOCH = 1_795_348_800
"""Start of simulated time: 2026-11-22 12:00:00 UTC, in seconds of the Unix epoch."""

SEEDS = (11, 12, 13, 14)
"""Layouts, one after the other; below `training.demonstrate.FIRST_SEED`: no policy was trained on them."""

WIDTH, HEIGHT, JPEG_QUALITY = 320, 240, 72
CAMERA_HZ, JOINTS_HZ = 30.0, 60.0
TICK_NS = round(TICK_S * 1e9)
AFTER_NS, LONGEST_NS = 500_000_000, 15_000_000_000
"""How long a layout goes on after success, and at most."""

TYPES = get_typestore(Stores.ROS2_KILTED)
IMAGE, JOINT_STATE, TRAJECTORY = (
    'sensor_msgs/msg/CompressedImage',
    'sensor_msgs/msg/JointState',
    'trajectory_msgs/msg/JointTrajectory',
)
STATES, COMMANDS = '/joint_states', '/demo/recorded_commands'
PICTURES = {name: f'/camera/{name}/image_raw/compressed' for name in ('front', 'wrist')}
TOPICS = {**dict.fromkeys(PICTURES.values(), IMAGE), STATES: JOINT_STATE, COMMANDS: TRAJECTORY}


@dataclass(frozen=True)
class Record:
    """A message on its way into the bag. stamp: ns of the Unix epoch."""

    stamp: int
    topic: str
    message: object


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bag', type=Path, help='directory to write; an older one is replaced')
    parser.add_argument('--seeds', type=int, nargs='+', default=SEEDS, help='of the layouts (%(default)s)')
    arguments = parser.parse_args()
    shutil.rmtree(arguments.bag, ignore_errors=True)
    write(arguments.bag, episode(arguments.seeds))
    size = sum(path.stat().st_size for path in arguments.bag.iterdir())
    print(f'{arguments.bag}: {size / 1e6:.2f} MB')


def episode(seeds: list[int]) -> Iterator[Record]:
    """Everything the robot says while the expert does its task once for each seed."""
    scene = so101()
    world, cameras = World(scene), Cameras(scene, WIDTH, HEIGHT)
    expert, names = Expert(world), [joint.name for joint in scene.joints]
    session = Session(world, EPOCH * 10**9, CAMERA_HZ, JOINTS_HZ)
    for seed in seeds:
        session.reset(seed)
        command = world.home
        while session.success_ns is None or session.now_ns < session.success_ns + AFTER_NS:
            if session.failed_ns or session.now_ns > session.begin_ns + LONGEST_NS:
                raise SystemExit(f'seed {seed}: the cube did not reach the goal; try another seed')
            command = expert.command(command)
            session.controller.command(names, [(TICK_NS, command.tolist())], session.now_ns)
            for now_ns, due in session.steps(session.now_ns + TICK_NS):
                for sensor in due:
                    if sensor != JOINTS:
                        picture = cameras.look(sensor, world.snapshot())
                        yield Record(now_ns, PICTURES[sensor], _image(now_ns, sensor, picture))
                        continue
                    yield Record(now_ns, STATES, _joint_state(now_ns, names, world))
                    wanted = session.controller.set_point(now_ns)
                    yield Record(now_ns, COMMANDS, _command(now_ns, names, wanted))
        print(f'seed {seed}: {session.seconds:.2f} s')


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


def _header(stamp: int, frame: str) -> object:
    time = TYPES.types['builtin_interfaces/msg/Time'](sec=stamp // 10**9, nanosec=stamp % 10**9)
    return TYPES.types['std_msgs/msg/Header'](stamp=time, frame_id=frame)


def _image(stamp: int, camera: str, picture: np.ndarray) -> object:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'JPEG', quality=JPEG_QUALITY, optimize=True)
    # The format string of image_transport's compressed plugin for a colour camera.
    return TYPES.types[IMAGE](
        header=_header(stamp, f'{camera}_camera_optical_frame'),
        format='rgb8; jpeg compressed bgr8',
        data=np.frombuffer(buffer.getvalue(), np.uint8),
    )


def _joint_state(stamp: int, names: list[str], world: World) -> object:
    return TYPES.types[JOINT_STATE](
        header=_header(stamp, 'base_link'),
        name=names,
        position=world.positions,
        velocity=world.velocities,
        effort=np.zeros(0),
    )


def _command(stamp: int, names: list[str], positions: np.ndarray) -> object:
    now = TYPES.types['builtin_interfaces/msg/Duration'](sec=0, nanosec=0)
    empty = np.zeros(0)
    point = TYPES.types['trajectory_msgs/msg/JointTrajectoryPoint'](
        positions=positions,
        velocities=empty,
        accelerations=empty,
        effort=empty,
        time_from_start=now,
    )
    return TYPES.types[TRAJECTORY](header=_header(stamp, 'base_link'), joint_names=names, points=[point])


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
