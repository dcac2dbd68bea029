"""The robot of this benchmark, as YAML: seven joints with limits, 500 commands a second."""

from __future__ import annotations

from pathlib import Path

import yaml

JOINTS = tuple(f'joint_{number}' for number in range(1, 8))
COMMANDS = '/joint_commands'
CONTROL_RATE_HZ = 500.0
PERIOD_NS = round(1e9 / CONTROL_RATE_HZ)


def write_robot(folder: Path, output_type: str) -> Path:
    """Returns the path of the YAML. No policy runs, so there is no checkpoint."""
    limits = {
        'position_min': -3.0,
        'position_max': 3.0,
        'max_velocity': 2.0,
        'max_acceleration': 20.0,
        'max_jump': 0.2,
    }
    data = {
        'robot': {'name': 'bench', 'joints': [{'name': joint, **limits} for joint in JOINTS]},
        'cameras': {'front': {'topic': '/camera/front'}},
        'joint_states': {'topic': '/joint_states', 'max_age_s': 5.0},
        'prompt': 'none',
        'policy': {'checkpoint': str(folder / 'none')},
        'rates': {'chunk_rate_hz': 10.0, 'action_rate_hz': 50.0, 'control_rate_hz': CONTROL_RATE_HZ},
        'output': {'type': output_type, 'topic': COMMANDS},
        'executor': {'strategy': 'async', 'hold_s': 5.0, 'max_chunk_age_s': 5.0},
    }
    path = folder / 'robot.yaml'
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding='utf-8')
    return path
