"""The demo's episode played into running nodes, recorded from their topics and evaluated; and offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashrt_ros.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
EPISODE, CONFIG = ROOT / 'demo/episode', ROOT / 'config/so101.yaml'
REFERENCE = '/demo/recorded_commands'

COMPARED = (
    'action_error.all.mae',
    'action_error.all.p90',
    'command_error.all.mae',
    'consistency.all.mae',
    'seam.all.p90',
    'jerk.all.rmse',
)
"""Another latency gives other moments and other noise: the figures agree within their intervals."""


def start_recorder(out):
    words = ['record', '--config', str(CONFIG), '--out', str(out), '--use-sim-time', '--reference', REFERENCE]
    command = [sys.executable, '-m', 'flashrt_ros.cli', *words, '--idle', '4', '--duration', '120']
    return subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL)


def metrics(bag, out, *words):
    command = ['evaluate', str(bag), '--config', str(CONFIG), '--out', str(out), '--no-report', *words]
    assert main(command) == 0
    (variant,) = json.loads((out / 'evaluation.json').read_text())['variants'].values()
    return variant


def require_the_same(live_bag, folder):
    """Every figure of the nodes within the 95 % interval of the replay, or the other way round."""
    offline = metrics(EPISODE, folder / 'offline', '--latency', '100', '--reference', REFERENCE)
    live = metrics(live_bag, folder / 'from_topics', '--from-topics', '--reference', REFERENCE)
    (played,), (seen,) = offline['episodes'].values(), live['episodes'].values()
    assert seen['chunks'] >= 0.8 * played['chunks']
    assert seen['duration_s'] == pytest.approx(played['duration_s'], abs=1.0)
    for name in COMPARED:
        ours, theirs = offline['metrics'][name], live['metrics'][name]
        print(f'{name}: offline {ours["value"]:.4g}, from topics {theirs["value"]:.4g}')
        within = (
            ours['low'] <= theirs['value'] <= ours['high'] or theirs['low'] <= ours['value'] <= theirs['high']
        )
        assert within, (name, ours, theirs)
