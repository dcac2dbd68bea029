"""`flashrt doctor` beside real cameras over real DDS."""

import subprocess
import sys

import pytest

from nodes.graph import Sensors

pytestmark = pytest.mark.ros

DOCTOR = [sys.executable, '-m', 'flashrt_ros.cli.doctor', '--listen', '1.5']


def lines_of(config):
    done = subprocess.run([*DOCTOR, '--config', str(config)], capture_output=True, text=True, timeout=100)
    assert done.stderr == ''
    lines: dict[str, str] = {}
    for line in done.stdout.splitlines():
        subject = line[5:31].strip()
        lines[subject] = f'{lines.get(subject, "")}{line}\n'
    return done.returncode, lines


def test_every_input_gets_lines_and_what_is_wrong_with_it_a_fix(graph, robot_yaml):
    sensors = Sensors(graph, joints=['c', 'extra', 'a', 'other'])
    sensors.change['base_0_rgb'] = lambda message: setattr(message, 'encoding', 'xyz')
    code, lines = lines_of(robot_yaml({'cameras.left_wrist_0_rgb.max_age_s': 5.0}))
    assert code == 1
    assert "the encoding 'xyz' is not supported. Fix: " in lines['input base_0_rgb']
    assert 'FAIL' not in lines['input left_wrist_0_rgb']
    assert "the joint 'b' is missing" in lines['input state']
    assert 'FAIL inference' in lines['inference']
    assert lines['taking frames'].startswith('ok   taking frames')
    assert lines['clock'].startswith('ok')
    assert lines['checkpoint'].startswith('ok')
