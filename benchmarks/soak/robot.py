"""The robot of the soak: a tiny random policy, two small cameras, and rates that leave a machine time.

At 10 x everything here comes ten times as often on the wall: 5 Hz of control are 50 Hz.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import TINY_PI05

SECOND = 1_000_000_000
JOINTS = ('a', 'b', 'c')
VIEWS = ('base_0_rgb', 'left_wrist_0_rgb')
MASKED = 'right_wrist_0_rgb'
COMMANDS, JOINT_STATES = '/soak/commands', '/soak/joint_states'
CONTROL_HZ, ACTION_HZ, CHUNK_HZ = 5.0, 1.25, 0.25
CAMERA_HZ, JOINT_STATES_HZ, CLOCK_HZ = 1.0, 5.0, 20.0
PERIOD_NS = round(SECOND / CONTROL_HZ)


def topic_of(view: str) -> str:
    return f'/soak/{view}'


def write_robot(folder: Path) -> Path:
    """Checkpoint and YAML. A chunk lasts 16 s and is replaced after 4: three in a row may fail."""
    checkpoint = write_random_checkpoint(
        folder / 'tiny', TINY_PI05, state_dim=len(JOINTS), action_dim=len(JOINTS)
    )
    limits = {'position_min': -3.0, 'position_max': 3.0, 'max_velocity': 1.0, 'max_acceleration': 20.0}
    data = {
        'robot': {'name': 'soak', 'joints': [{'name': joint, **limits} for joint in JOINTS]},
        'cameras': {view: {'topic': topic_of(view), 'max_age_s': 4.0} for view in VIEWS},
        'joint_states': {'topic': JOINT_STATES, 'max_age_s': 4.0},
        'prompt': 'fold the towel',
        'policy': {'checkpoint': str(checkpoint), 'masked_views': [MASKED], 'threads': 1},
        'rates': {
            'chunk_rate_hz': CHUNK_HZ,
            'action_rate_hz': ACTION_HZ,
            'control_rate_hz': CONTROL_HZ,
        },
        'gates': {'max_skew_s': 4.0, 'max_future_s': 1.0},
        'output': {'type': 'joint_state', 'topic': COMMANDS},
        'executor': {'strategy': 'async', 'hold_s': 1.0, 'max_chunk_age_s': 16.0, 'safe_action': 'hold'},
    }
    path = folder / 'robot.yaml'
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path
