"""A robot with three joints and two cameras, a policy small enough for tests, and the graph they live in."""

import importlib.util

import pytest
import yaml

from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import TINY_PI05

if importlib.util.find_spec('rclpy') is None:
    collect_ignore_glob = ['test_*.py']
else:
    from nodes.graph import Graph

ROBOT = {
    'robot': {
        'name': 'testbot',
        'joints': [
            {'name': 'a', 'scale': 2.0, 'offset': 0.5},
            {'name': 'b', 'position_min': -3.0, 'position_max': 3.0},
            {'name': 'c', 'max_step': 5.0},
        ],
    },
    'cameras': {
        'base_0_rgb': {'topic': '/front', 'max_age_s': 0.3},
        'left_wrist_0_rgb': {'topic': '/wrist', 'transport': 'compressed', 'max_age_s': 0.3},
    },
    'joint_states': {'topic': '/joint_states', 'max_age_s': 0.3},
    'prompt': 'fold the towel',
    'policy': {'checkpoint': 'set by the fixture', 'masked_views': ['right_wrist_0_rgb'], 'seed': 1},
    'rates': {'chunk_rate_hz': 10.0, 'action_rate_hz': 20.0, 'control_rate_hz': 100.0},
    'gates': {'max_skew_s': 0.5},
    'output': {'type': 'joint_trajectory', 'topic': '/commands'},
    'executor': {'ramp_s': 0.0, 'hold_s': 0.2},
}


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(
        tmp_path_factory.mktemp('tiny') / 'tiny', TINY_PI05, state_dim=3, action_dim=3
    )


@pytest.fixture
def robot_yaml(tmp_path, checkpoint):
    """Writes the robot's YAML. changes: dotted key -> value."""

    def write(changes=None):
        data = yaml.safe_load(yaml.safe_dump(ROBOT))
        for key, value in {'policy.checkpoint': str(checkpoint), **(changes or {})}.items():
            *parents, last = key.split('.')
            section = data
            for part in parents:
                section = section[part]
            section[last] = value
        file = tmp_path / 'robot.yaml'
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        return file

    return write


@pytest.fixture
def graph(ros_domain, monkeypatch):
    # Nodes of one process find each other at once.
    monkeypatch.setattr('flashrt_ros.nodes.identity.DISCOVERY_S', 0.1)
    monkeypatch.setattr('flashrt_ros.nodes.managed_node.DIAGNOSTICS_PERIOD_S', 0.2)
    with Graph(ros_domain) as graph:
        yield graph
