"""Sorting a bag's messages into arrays: any output type, joints by name, whatever is missing."""

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from evaluation.bags import BEGIN_NS, JOINT_STATE, STEP_NS, TYPES, joint_state, write_bag
from evaluation.runs import make_config
from flashrt_ros.evaluation.bag import BagError, open_bag
from flashrt_ros.evaluation.run import read_run

TRAJECTORY, ARRAY = 'trajectory_msgs/msg/JointTrajectory', 'std_msgs/msg/Float64MultiArray'


def trajectory(names, positions):
    duration = TYPES.types['builtin_interfaces/msg/Duration'](sec=0, nanosec=0)
    empty = np.zeros(0)
    point = TYPES.types['trajectory_msgs/msg/JointTrajectoryPoint'](
        positions=np.array(positions),
        velocities=empty,
        accelerations=empty,
        effort=empty,
        time_from_start=duration,
    )
    header = joint_state(BEGIN_NS, []).header
    return TYPES.types[TRAJECTORY](header=header, joint_names=list(names), points=[point])


def array(values):
    layout = TYPES.types['std_msgs/msg/MultiArrayLayout'](dim=[], data_offset=0)
    return TYPES.types[ARRAY](layout=layout, data=np.array(values))


def write_commands(path, kind, messages):
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        connection = bag.add_connection('/commands', kind, typestore=TYPES)
        for i, message in enumerate(messages):
            bag.write(connection, BEGIN_NS + i * STEP_NS, TYPES.serialize_cdr(message, kind))
    return path


@pytest.mark.parametrize(
    ('output', 'kind', 'message'),
    [
        ('joint_trajectory', TRAJECTORY, trajectory(['b', 'a'], [2.0, 1.0])),
        ('joint_state', JOINT_STATE, joint_state(BEGIN_NS, [2.0, 1.0], ['b', 'a'])),
        ('float64_multi_array', ARRAY, array([1.0, 2.0])),
    ],
)
def test_commands_of_every_type_come_in_the_order_of_the_robot(tmp_path, output, kind, message):
    path = write_commands(tmp_path / 'bag', kind, [message] * 3)
    with open_bag(path) as bag:
        run = read_run(bag, make_config(tmp_path, output))
    assert run.commanded.values.tolist() == [[1.0, 2.0]] * 3
    assert run.commanded.times_ns.tolist() == [BEGIN_NS + i * STEP_NS for i in range(3)]


def test_joint_states_are_taken_at_their_stamps(tmp_path):
    with open_bag(write_bag(tmp_path / 'bag', count=4)) as bag:
        run = read_run(bag, make_config(tmp_path))
    assert run.measured.values.tolist() == [[i, -i] for i in range(4)]
    assert run.measured.times_ns.tolist() == [BEGIN_NS + i * STEP_NS for i in range(4)]
    assert run.inputs_ns['state'].size == 4
    assert run.ready_ns == BEGIN_NS
    assert run.end_ns == BEGIN_NS + 3 * STEP_NS


def test_topics_that_are_not_there_give_nothing(tmp_path):
    with open_bag(write_bag(tmp_path / 'bag', count=4)) as bag:
        run = read_run(bag, make_config(tmp_path))
    assert run.chunks == run.stats == []
    assert run.inputs_ns['front'].size == run.commanded.times_ns.size == run.reference.times_ns.size == 0
    assert run.commanded.values.shape == (0, 2)


def test_bag_of_a_robot_with_other_joints(tmp_path):
    path = write_commands(tmp_path / 'bag', TRAJECTORY, [trajectory(['a', 'c'], [1.0, 2.0])])
    with open_bag(path) as bag, pytest.raises(BagError, match=r"no joint 'b', only a, c\. Read the bag with"):
        read_run(bag, make_config(tmp_path))
