"""Every trouble that people run into gets a line that names it, and the fix."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rights import may_have_priority, without_right

from flashrt_ros.configuration import load_config, with_values
from flashrt_ros.doctor import Finding, Level
from flashrt_ros.doctor.finding import all_well
from flashrt_ros.doctor.machine import checkpoint_findings, gpu_findings
from flashrt_ros.doctor.topics import TopicSeen, clock_finding, outcome_finding, topic_findings
from flashrt_ros.doctor.transport import segment_size, transport_findings
from flashrt_ros.ingest import Blocked, Ingest, Taken
from flashrt_ros.policy import Observation

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / 'config' / 'fastdds_large_images.xml'
CONFIG = load_config(ROOT / 'config' / 'so101.yaml')
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'


def seen(rate_hz=30.0, seconds=4.0, age_s=0.01, **changes):
    """A camera that does well, and what is different about it."""
    times = list(np.arange(0.0, seconds, 1.0 / rate_hz)) if rate_hz else []
    given = {'offered': [IMAGE], 'publishers': 1, 'times_s': times, 'ages_s': [age_s] * len(times), **changes}
    return TopicSeen('front', '/camera', IMAGE, max_age_s=0.2, **given)


def only(findings, *levels):
    return [finding for finding in findings if finding.level in levels]


def test_a_camera_that_does_well():
    findings = list(topic_findings(seen(about="640 x 480, 'rgb8'"), 4.0))
    assert {finding.level for finding in findings} == {Level.OK}
    assert "30.0 Hz, longest gap 33 ms, 640 x 480, 'rgb8'" in findings[0].found
    assert 'age on arrival 10.0 ms' in findings[1].found


HELD_UP = [0.0, 0.03, 0.06, 0.09, 0.9, 0.93]


@pytest.mark.parametrize(
    ('trouble', 'level', 'found', 'fix'),
    [
        ({'publishers': 0, 'offered': []}, Level.FAIL, "nobody publishes on '/camera'", 'start the driver'),
        ({'offered': [COMPRESSED]}, Level.FAIL, f"has {COMPRESSED}, not {IMAGE}", 'transport'),
        ({'rate_hz': 0}, Level.FAIL, 'has 1 publisher(s), and nothing came in 4 s', 'shared-memory profile'),
        ({'rate_hz': 0, 'drops': ['data needs 9 bytes']}, Level.FAIL, 'all 1 messages were dropped', 'docs'),
        ({'drops': ['data needs 9 bytes'] * 9}, Level.FAIL, '9 dropped: data needs 9 bytes', 'docs'),
        ({'publishers': 2}, Level.WARN, '2 publishers', 'its own topic'),
        ({'rate_hz': 0.4}, Level.WARN, '2 message(s) in 4 s', 'raise its rate'),
        ({'times_s': HELD_UP, 'ages_s': [0.01] * 6}, Level.WARN, 'longest gap 810 ms', 'load'),
        ({'age_s': 0.5}, Level.WARN, 'age on arrival 500.0 ms', 'synchronise the clocks'),
        ({'age_s': -0.5}, Level.WARN, 'age on arrival -500.0 ms', 'synchronise the clocks'),
        ({'age_s': 1.7e9}, Level.FAIL, 'stamps are 1700000000 s from the clock', 'use_sim_time'),
    ],
)  # fmt: skip
def test_what_can_be_wrong_with_an_input(trouble, level, found, fix):
    findings = only(topic_findings(seen(**trouble), 4.0), level)
    assert any(found in finding.found and fix in finding.fix for finding in findings), findings


def middleware(rmw='rmw_fastrtps_cpp', **environment):
    return {finding.subject: finding for finding in transport_findings(environment, rmw)}


def test_the_shared_memory_segment_of_fast_dds(tmp_path):
    assert segment_size(PROFILE) == 64 << 20
    subject = 'shared-memory segment'
    assert middleware(FASTDDS_DEFAULT_PROFILES_FILE=str(PROFILE))[subject].level is Level.OK
    assert middleware(FASTDDS_BUILTIN_TRANSPORTS='LARGE_DATA')[subject].level is Level.OK
    assert middleware('rmw_zenoh_cpp')[subject].level is Level.NOTE
    default = middleware()[subject]
    assert (default.level, default.found[:7]) == (Level.FAIL, '512 KiB')
    assert 'export FASTDDS_DEFAULT_PROFILES_FILE=' in default.fix
    assert 'export FASTRTPS_DEFAULT_PROFILES_FILE=' in middleware(ROS_DISTRO='jazzy')[subject].fix
    small = tmp_path / 'small.xml'
    small.write_text(PROFILE.read_text().replace('67108864', '1048576'))
    assert '1024 KiB' in middleware(FASTDDS_DEFAULT_PROFILES_FILE=str(small))[subject].found
    small.write_text('<dds><unfinished>')
    broken = middleware(FASTDDS_DEFAULT_PROFILES_FILE=str(small))[subject]
    assert (broken.level, 'cannot be read' in broken.found) == (Level.FAIL, True)


def test_the_clock():
    assert clock_finding(0, False).level is Level.OK
    assert clock_finding(1, True).level is Level.OK
    assert 'use_sim_time:=true' in clock_finding(1, False).fix
    assert 'nobody publishes /clock' in clock_finding(0, True).found


def test_whether_an_inference_could_start_is_said_in_the_words_of_the_node():
    blocked = Ingest(CONFIG).observe(10**18)
    assert isinstance(blocked, Blocked)
    finding = outcome_finding(blocked)
    assert finding.level is Level.FAIL
    assert "would wait: base_0_rgb: no message on '/camera/front" in finding.found


def test_an_inference_that_could_start():
    picture = np.zeros((48, 64, 3), np.uint8)
    observation = Observation({'front': picture}, np.zeros(3, np.float32), 'fold')
    finding = outcome_finding(Taken(observation, 1, {}, 0.0, 0.0, 0.0, 0.002))
    assert (finding.level, finding.found) == (Level.OK, 'could start: front 64 x 48, 3 joints, skew 2.0 ms')


def test_the_joints_of_robot_and_checkpoint():
    assert [finding.level for finding in checkpoint_findings(CONFIG)] == [Level.OK]
    missing = with_values(CONFIG, {'policy.checkpoint': '/nowhere'}, 'test')
    (finding,) = checkpoint_findings(missing)
    assert (finding.level, '/nowhere' in finding.found, bool(finding.fix)) == (Level.FAIL, True, True)
    joint = CONFIG.robot.joints[0]
    less = CONFIG.robot.model_copy(update={'joints': [joint]})
    (finding,) = checkpoint_findings(CONFIG.model_copy(update={'robot': less}))
    assert '1 joints are listed, but the checkpoint' in finding.found


def test_a_gpu_is_missed_only_where_it_is_wanted(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert [finding.level for finding in gpu_findings(CONFIG)] == [Level.NOTE]
    (wanted,) = gpu_findings(with_values(CONFIG, {'policy.device': 'cuda'}, 'test'))
    assert (wanted.level, 'install an NVIDIA driver' in wanted.fix) == (Level.FAIL, True)


SCHEDULING = """
from flashrt_ros.configuration.scheduling import Scheduling
from flashrt_ros.doctor.scheduling import scheduling_findings
for finding in scheduling_findings(Scheduling(streamer_priority={}, streamer_cpus={})):
    print(finding.line)
"""


def scheduling_lines(priority=None, cpus=None, in_child=None):
    command = [sys.executable, '-c', SCHEDULING.format(priority, cpus)]
    return subprocess.run(
        command, preexec_fn=in_child, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_a_priority_that_would_be_denied():
    (line,) = scheduling_lines(50, in_child=without_right)
    assert line.startswith('WARN streamer_priority')
    assert '50 is denied, commands may come late. Fix: ' in line
    assert 'rtprio 99' in line
    assert scheduling_lines()[0].startswith('-    streamer_priority')


@pytest.mark.skipif(not may_have_priority(), reason='this user has no right to real-time priority')
def test_a_priority_that_would_be_granted():
    assert scheduling_lines(50)[0].startswith('ok   streamer_priority          50 is granted')


def test_the_cpus_of_the_streamer():
    assert scheduling_lines(cpus=[0])[1].startswith('ok   streamer_cpus')
    _, line = scheduling_lines(cpus=[0, 9999])
    assert line.startswith('WARN streamer_cpus')
    assert 'CPU 9999 does not exist. Fix: choose from 0 to ' in line


def test_a_finding_is_one_line():
    finding = Finding(Level.FAIL, 'clock', 'two\nlines', 'do this')
    assert finding.line == 'FAIL clock                      two lines. Fix: do this'
    assert not all_well([Finding(Level.OK, 'a', 'b'), finding])
    assert all_well([Finding(Level.WARN, 'a', 'b')])
