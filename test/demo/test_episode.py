"""The committed policy on the committed episode, whose layouts it was not trained on."""

import json
from pathlib import Path

import yaml

from flashrt_ros.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

LIMITS = {'command_error.all.mae': 0.04, 'gripper_delay.all.mae': 0.1, 'blocked.all.mean': 0.0}
"""Measured: 0.020 rad, 0.027 s, 0; on the bag's time, so that a busy machine changes nothing."""


def test_the_policy_does_what_the_expert_did_on_layouts_that_it_has_not_seen(tmp_path):
    (tmp_path / 'limits.yaml').write_text(yaml.safe_dump({'limits': LIMITS}))
    command = ['evaluate', str(ROOT / 'demo/episode'), '--config', str(ROOT / 'config/so101.yaml')]
    options = ['--thresholds', str(tmp_path / 'limits.yaml'), '--no-report', '--out', str(tmp_path / 'out')]
    assert main(command + options) == 0
    (variant,) = json.loads((tmp_path / 'out/evaluation.json').read_text())['variants'].values()
    assert set(LIMITS) <= set(variant['metrics'])
