"""Small bags on disk, and ways to damage them."""

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.ROS2_JAZZY)
STRING, JOINT_STATE = 'std_msgs/msg/String', 'sensor_msgs/msg/JointState'
BEGIN_NS = 1_700_000_000 * 10**9
STEP_NS = 10_000_000


def joint_state(time_ns, positions, names=('a', 'b')):
    stamp = TYPES.types['builtin_interfaces/msg/Time'](sec=time_ns // 10**9, nanosec=time_ns % 10**9)
    return TYPES.types[JOINT_STATE](
        header=TYPES.types['std_msgs/msg/Header'](stamp=stamp, frame_id=''),
        name=list(names),
        position=np.array(positions, dtype=np.float64),
        velocity=np.zeros(0),
        effort=np.zeros(0),
    )


def write_bag(path, count=100, storage=StoragePlugin.MCAP, padding=0):
    """`count` joint states with positions [i, -i] and as many strings 'i', one of each every 10 ms."""
    with Writer(path, version=9, storage_plugin=storage) as bag:
        states = bag.add_connection('/joint_states', JOINT_STATE, typestore=TYPES)
        words = bag.add_connection('/words', STRING, typestore=TYPES)
        for i in range(count):
            time_ns = BEGIN_NS + i * STEP_NS
            state = joint_state(time_ns, [i, -i])
            bag.write(states, time_ns, TYPES.serialize_cdr(state, JOINT_STATE))
            word = TYPES.types[STRING](data=str(i) + '.' * padding)
            bag.write(words, time_ns + STEP_NS // 2, TYPES.serialize_cdr(word, STRING))
    return path


def mcap_of(path):
    return next(path.glob('*.mcap'))


def truncate(path, keep):
    """Cut the bag's file: keep this part of it, as if the recorder had been killed."""
    file = mcap_of(path)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
