"""The demo as a user starts it: real processes, real DDS, the recorded episode, the committed checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flashrt_ros.evaluation.bag import open_bag

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = ('policy_node', 'action_streamer', 'player')


@pytest.fixture
def demo(tmp_path, ros_domain):
    """Starts the demo with more arguments, and ends it if a test did not."""
    started = []

    def start(*arguments, **rates):
        config = yaml.safe_load((ROOT / 'config/so101.yaml').read_text())
        config['rates'].update(rates)
        config['policy']['checkpoint'] = str(ROOT / 'demo/so101_pi05')
        (tmp_path / 'robot.yaml').write_text(yaml.safe_dump(config))
        command = [sys.executable, '-m', 'demo', '--device', 'cpu', '--domain', str(ros_domain)]
        command += ['--config', str(tmp_path / 'robot.yaml'), '--out', str(tmp_path / 'out'), *arguments]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


def children_of(out):
    """Process ids whose command line names this run's configuration."""
    found = []
    for folder in Path('/proc').iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            line = (folder / 'cmdline').read_bytes().decode().replace('\0', ' ')
        except OSError:
            continue
        if str(out.parent) in line and 'flashrt_ros.nodes' in line:
            found.append(int(folder.name))
    return found


def test_short_run_writes_everything_and_its_exit_code_is_its_verdict(demo, tmp_path):
    # Rates that a busy machine keeps too; what is slow here is not the subject.
    process = demo('--duration', '5', chunk_rate_hz=1.0, control_rate_hz=20.0)
    output, _ = process.communicate(timeout=150)
    out = tmp_path / 'out'
    report = json.loads((out / 'report.json').read_text())
    assert process.returncode == (0 if report['passed'] else 1), output
    assert report['passed'] or report['failures'], output
    assert report['counts']['chunks'] >= 2
    assert report['rates']['commands']['count'] > 20
    assert report['rates']['commands']['wanted_hz'] == 20.0
    assert 0 < report['stages']['denoise']['p50'] < report['inference']['p50'] < report['latency']['p50']
    assert set(report['ages']) == {'base_0_rgb', 'left_wrist_0_rgb', 'state'}
    for name in ('report.txt', 'joints.png', 'jitter.png', 'latency.png', *(f'{p}.log' for p in PROCESSES)):
        assert (out / name).stat().st_size > 0, name
    assert 'playing' in output
    assert children_of(out) == []
    with open_bag(out / 'results') as bag:
        assert bag.topics['/action_chunk'].count == report['counts']['chunks']
        age_ns = time.time_ns() - bag.end_ns
    assert 0 < age_ns < 120e9  # stamps of now, not of the recording


def test_rate_that_the_policy_cannot_reach_fails_with_the_reason(demo, tmp_path):
    process = demo('--duration', '2.5', chunk_rate_hz=40.0, control_rate_hz=50.0)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 1, output
    assert 'FAILED: chunks: ' in output
    assert 'instead of 40 Hz' in output
    assert 'an inference takes' in output
    assert 'lower rates.chunk_rate_hz' in output


def test_node_that_cannot_load_its_checkpoint_ends_the_demo_with_its_log(demo, tmp_path):
    (tmp_path / 'empty').mkdir()
    process = demo('--checkpoint', str(tmp_path / 'empty'))
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 3, output
    assert 'policy_node did not configure' in output
    assert str(tmp_path / 'empty') in output
    assert 'config.json' in output
    assert children_of(tmp_path / 'out') == []


def test_process_that_dies_ends_the_demo_with_its_log(demo, tmp_path):
    process = demo()
    out = tmp_path / 'out'
    _wait_for(lambda: (out / 'policy_node.log').exists() and children_of(out))
    os.kill(children_of(out)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert 'ended with exit code -9' in output
    assert children_of(out) == []


def test_interrupt_ends_every_process(demo, tmp_path):
    process = demo()
    _wait_for(lambda: len(children_of(tmp_path / 'out')) == 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert output.rstrip().endswith('demo: interrupted')
    assert children_of(tmp_path / 'out') == []


def test_bag_of_another_robot_is_refused_before_anything_starts(demo, tmp_path):
    from evaluation.bags import write_bag

    process = demo('--bag', str(write_bag(tmp_path / 'other')))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "there is no topic '/camera/front/image_raw/compressed', only /joint_states, /words" in output
    assert not (tmp_path / 'out/policy_node.log').exists()


def _wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.05)
