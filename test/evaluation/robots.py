"""A small robot for the evaluator: its configuration, a tiny policy, and bags that it might have recorded."""

import io
import shutil
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import yaml
from PIL import Image as Picture
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.ROS2_JAZZY)
BEGIN_NS = 1_700_000_000 * 10**9
JOINTS = ('a', 'b', 'gripper')
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
STATE, TRAJECTORY = 'sensor_msgs/msg/JointState', 'trajectory_msgs/msg/JointTrajectory'
ROBOT = {
    'robot': {'name': 'three', 'joints': [{'name': name} for name in JOINTS]},
    'cameras': {
        'base_0_rgb': {'topic': '/front', 'max_age_s': 0.3},
        'left_wrist_0_rgb': {'topic': '/wrist', 'transport': 'compressed', 'max_age_s': 0.3},
    },
    'joint_states': {'topic': '/joint_states', 'max_age_s': 0.3},
    'prompt': 'fold the towel',
    'policy': {'checkpoint': '', 'masked_views': ['right_wrist_0_rgb'], 'seed': 1, 'threads': 1},
    'rates': {'chunk_rate_hz': 5.0, 'action_rate_hz': 20.0, 'control_rate_hz': 50.0},
    'gates': {'max_skew_s': 0.5},
    'output': {'type': 'joint_trajectory', 'topic': '/commands'},
    'executor': {'ramp_s': 0.0, 'hold_s': 0.2},
}


def write_config(path, checkpoint, **sections):
    """sections: section -> keys that differ from ROBOT."""
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in ROBOT.items()}
    data['policy']['checkpoint'] = str(checkpoint)
    for section, keys in sections.items():
        data[section] = {**data[section], **keys} if isinstance(keys, dict) else keys
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@dataclass
class BagMaker:
    """A recording of `seconds` with cameras at 20 Hz, joint states at 50 Hz and commands at 20 Hz.

    change: topic -> function of (time_ns, message) that gives the message to write, or None to leave it out.
    renamed: topic -> its name in the bag. left_out: topics that are not there.
    """

    seconds: float = 2.0
    storage: StoragePlugin = StoragePlugin.MCAP
    joints: tuple = JOINTS
    size: tuple = (48, 64)
    change: dict = field(default_factory=dict)
    renamed: dict = field(default_factory=dict)
    left_out: tuple = ()
    compression: tuple = ()
    seed: int = 0

    def write(self, path, begin_s=0.0, end_s=float('inf')):
        """begin_s, end_s: write only this part of the recording."""
        writer = Writer(path, version=9, storage_plugin=self.storage)
        if self.compression:
            writer.set_compression(*self.compression)
        with writer as bag:
            kinds = {'/front': IMAGE, '/wrist': COMPRESSED, '/joint_states': STATE, '/commands': TRAJECTORY}
            connections = {
                topic: bag.add_connection(self.renamed.get(topic, topic), kind, typestore=TYPES)
                for topic, kind in kinds.items()
                if topic not in self.left_out
            }
            for time_ns, topic, message in sorted(self.messages(), key=lambda item: item[:2]):
                message = self.change.get(topic, lambda _, m: m)(time_ns, message)
                within = begin_s <= (time_ns - BEGIN_NS) / 1e9 < end_s
                if topic in connections and message is not None and within:
                    bag.write(connections[topic], time_ns, TYPES.serialize_cdr(message, kinds[topic]))
        return path

    def write_split(self, path, *cuts):
        """The recording in several storage files, as `ros2 bag record --max-bag-duration` leaves it."""
        path.mkdir()
        abouts = []
        for number, (begin_s, end_s) in enumerate(pairwise((0.0, *cuts, float('inf')))):
            part = self.write(path / 'part', begin_s, end_s)
            abouts.append(yaml.safe_load((part / 'metadata.yaml').read_text())['rosbag2_bagfile_information'])
            for file in [file for file in part.iterdir() if file.name != 'metadata.yaml']:
                file.rename(path / file.name.replace('part', f'{path.name}_{number}'))
            shutil.rmtree(part)
        whole = abouts[0] | {'relative_file_paths': sorted(file.name for file in path.iterdir())}
        whole['message_count'] = sum(about['message_count'] for about in abouts)
        topics = zip(*(about['topics_with_message_count'] for about in abouts), strict=True)
        whole['topics_with_message_count'] = [
            same[0] | {'message_count': sum(topic['message_count'] for topic in same)} for same in topics
        ]
        text = yaml.safe_dump({'rosbag2_bagfile_information': whole})
        (path / 'metadata.yaml').write_text(text)
        return path

    def messages(self):
        rng = np.random.default_rng(self.seed)
        for time_ns in _times(20, self.seconds, 0.003):
            yield time_ns, '/front', self.image(time_ns, rng)
        for time_ns in _times(20, self.seconds, 0.011):
            yield time_ns, '/wrist', self.compressed(time_ns, rng)
        for time_ns in _times(50, self.seconds, 0.0):
            yield time_ns, '/joint_states', self.state(time_ns)
        for time_ns in _times(20, self.seconds, 0.001):
            yield time_ns, '/commands', self.command(time_ns)

    def image(self, time_ns, rng):
        height, width = self.size
        data = rng.integers(0, 255, height * width * 3, dtype=np.uint8)
        return TYPES.types[IMAGE](
            header=header(time_ns - 2_000_000),
            height=height,
            width=width,
            encoding='rgb8',
            is_bigendian=0,
            step=width * 3,
            data=data,
        )

    def compressed(self, time_ns, rng):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 255, (*self.size, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(buffer, 'JPEG')
        data = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
        return TYPES.types[COMPRESSED](header=header(time_ns - 3_000_000), format='jpeg', data=data)

    def state(self, time_ns):
        empty = np.zeros(0)
        return TYPES.types[STATE](
            header=header(time_ns),
            name=list(self.joints),
            position=self.positions(time_ns),
            velocity=empty,
            effort=empty,
        )

    def command(self, time_ns):
        empty = np.zeros(0)
        now = TYPES.types['builtin_interfaces/msg/Duration'](sec=0, nanosec=0)
        point = TYPES.types['trajectory_msgs/msg/JointTrajectoryPoint'](
            positions=self.positions(time_ns + 50_000_000),
            velocities=empty,
            accelerations=empty,
            effort=empty,
            time_from_start=now,
        )
        return TYPES.types[TRAJECTORY](header=header(time_ns), joint_names=list(self.joints), points=[point])

    def positions(self, time_ns):
        seconds = (time_ns - BEGIN_NS) / 1e9
        of = {'a': np.sin(seconds), 'b': 0.5 * np.cos(seconds), 'gripper': float(seconds % 1.0 > 0.5)}
        return np.array([of.get(name, 0.0) for name in self.joints])


def header(time_ns):
    stamp = TYPES.types['builtin_interfaces/msg/Time'](sec=time_ns // 10**9, nanosec=time_ns % 10**9)
    return TYPES.types['std_msgs/msg/Header'](stamp=stamp, frame_id='')


def _times(rate_hz, seconds, offset_s):
    return [BEGIN_NS + round((offset_s + i / rate_hz) * 1e9) for i in range(round(seconds * rate_hz))]
