"""What is measured: a size and rate of the cameras, a policy, and the robot's YAML that fits them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.e2e.camera import topic_of
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import NANO_PI05, PI05

VIEWS = ('base_0_rgb', 'left_wrist_0_rgb')
MASKED = 'right_wrist_0_rgb'
JOINTS = ('a', 'b', 'c', 'd', 'e', 'f')
COMMANDS = '/joint_commands'
CONTROL_RATE_HZ = 500.0
GENEROUS_S = 5.0
"""For ages and skews: this is about how long things take, and nothing may be refused for it."""


@dataclass(frozen=True)
class Setting:
    """size: pixels, '640x480'. rate_hz: of the cameras and, at most, of the inferences."""

    size: str
    rate_hz: float
    trigger: str = 'frame'
    source: str = 'auto'

    @property
    def name(self) -> str:
        return f'{len(VIEWS)} x {self.size}, {self.rate_hz:g} Hz, {self.trigger}, {self.source}'


def write_checkpoint(folder: Path, full: bool) -> Path:
    """Random weights of a nano pi0.5, or of the full size, which gets scales for fp8."""
    if not full:
        return write_random_checkpoint(folder / 'nano_pi05', NANO_PI05, state_dim=6, action_dim=6)
    from flashrt_ros.engine.calibration.measure import calibrate_checkpoint, random_observations
    from flashrt_ros.models.checkpoint import open_checkpoint

    path = write_random_checkpoint(folder / 'pi05', PI05, dtype=torch.bfloat16, state_dim=6, action_dim=6)
    calibrate_checkpoint(path, random_observations(open_checkpoint(path), 8))
    return path


def robot(
    setting: Setting,
    checkpoint: Path,
    device: str,
    precision: str | None,
    threads: int | None,
    priority: int | None = None,
) -> dict[str, Any]:
    """The robot's YAML. priority: the streamer's, real-time; None for none."""
    cameras = {view: {'topic': topic_of(view), 'max_age_s': GENEROUS_S} for view in VIEWS}
    policy: dict[str, Any] = {'checkpoint': str(checkpoint), 'device': device, 'masked_views': [MASKED]}
    policy |= {'precision': precision, 'threads': threads}
    return {
        'robot': {'name': 'bench', 'joints': [{'name': joint} for joint in JOINTS]},
        'cameras': cameras,
        'joint_states': {'topic': '/joint_states', 'max_age_s': GENEROUS_S},
        'prompt': 'fold the towel and put it on the shelf',
        'policy': policy,
        'rates': {
            'chunk_rate_hz': setting.rate_hz,
            'action_rate_hz': 50.0,
            'control_rate_hz': CONTROL_RATE_HZ,
            'trigger': setting.trigger,
        },
        'gates': {'max_skew_s': GENEROUS_S},
        'ingest': {'source': setting.source},
        'scheduling': {'streamer_priority': priority},
        'output': {'type': 'joint_state', 'topic': COMMANDS},
        'executor': {'strategy': 'async', 'ramp_s': 0.0, 'hold_s': 2.0, 'max_chunk_age_s': 10.0},
    }


def write_robot(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / 'robot.yaml'
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path
