"""Two arms in the ROS graph: 14 joints and 3 cameras through policy and streamer, and back as motion."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from flashrt_ros.msg import ActionChunk
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from flashrt_ros.configuration import load_config
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import TINY_PI05
from flashrt_ros.models.writer import Statistics, write_checkpoint
from nodes.graph import wait_until

SIMULATION = ('mujoco', 'gym_aloha')
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, SIMULATION)),
    reason='needs requirements-sim-models.txt: make simulation',
)
CONFIG = Path(__file__).resolve().parents[2] / 'config/aloha_simulation.yaml'
SMALL = {'robot': 'aloha', 'width': 64, 'height': 48, 'camera_hz': 10.0}


@pytest.fixture
def checkpoint(tmp_path):
    """Random weights whose actions keep near where the arms stand at first."""
    from flashrt_ros.simulation.aloha import HOME

    arm = np.array([0.06] * 6 + [0.002])
    spread = np.random.default_rng(0).normal(HOME * 2, np.tile(arm, 2), (1000, 14))
    near_home = Statistics.of(spread)
    return write_checkpoint(
        tmp_path / 'policy', TINY_PI05, random_tensors(TINY_PI05, 0), near_home, near_home, format='openpi'
    )


def test_three_views_and_fourteen_joints_become_commands_that_both_arms_obey(graph, checkpoint):
    from flashrt_ros.nodes.action_streamer import ActionStreamer
    from flashrt_ros.nodes.policy_node import PolicyNode
    from flashrt_ros.nodes.sim_node import SimNode

    names = list(load_config(CONFIG).joint_names)
    chunks = graph.watch(ActionChunk, 'action_chunk')
    commands = graph.watch(JointTrajectory, '/aloha/joint_commands')
    states = graph.watch(JointState, '/joint_states', qos_profile_sensor_data)
    overrides = [Parameter(name, value=value) for name, value in SMALL.items()]
    robot = graph.add(SimNode(context=graph.context, parameter_overrides=overrides))
    wait_until(lambda: states, 60.0, 'the robot')
    chosen = {'policy__checkpoint': str(checkpoint), 'use_sim_time': True}
    streamer = graph.start(ActionStreamer, CONFIG, use_sim_time=True)
    policy = graph.start(PolicyNode, CONFIG, **chosen)
    for node in (streamer, policy):
        assert graph.change(node, 'configure', 'activate')
    wait_until(lambda: len(chunks) > 3 and len(commands) > 50, 60.0, 'chunks and commands')
    assert graph.change(policy, 'deactivate')
    wait_until(lambda: robot._told.silent, 30.0, 'silence')

    chunk, last = chunks[-1][1], commands[-1][1]
    assert list(chunk.names) == list(last.joint_names) == list(states[-1][1].name) == names
    assert (chunk.horizon, chunk.action_dim, len(chunk.data)) == (
        TINY_PI05.horizon,
        14,
        TINY_PI05.horizon * 14,
    )
    wanted = np.array(last.points[0].positions)
    sent = np.array([message.points[0].positions for _, message in commands])
    # Every joint was moved, on either arm, and all of them ended where the last command wanted them.
    assert (np.ptp(sent, axis=0) > np.tile([0.01] * 6 + [0.0005], 2)).all()
    tolerance = np.tile([0.05] * 6 + [0.004], 2)
    assert (np.abs(np.array(states[-1][1].position) - wanted) < tolerance).all()
    assert not robot._told.counts.refused
