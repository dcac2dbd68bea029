"""A bag played into the running nodes in simulated time gives the figures of the replay without ROS."""

import subprocess
import sys
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition

from nodes.graph import wait_until
from nodes.live_replay import CONFIG, EPISODE, require_the_same, start_recorder
from nodes.test_processes import drive

pytestmark = [pytest.mark.ros, pytest.mark.slow]


def test_from_topics_as_offline(graph, start, tmp_path):
    recorder = start_recorder(tmp_path / 'live')
    for name in ('policy_node', 'action_streamer'):
        start(name, f'config:={CONFIG}', 'use_sim_time:=true')
        drive(graph, name, Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: graph.tester.count_subscribers('/executing_chunk') >= 2, 60, 'the recorder')
    player = [sys.executable, str(Path(__file__).with_name('bag_play.py')), 'bag', 'play', str(EPISODE)]
    assert subprocess.run([*player, '--clock', '200'], timeout=60).returncode == 0
    assert recorder.wait(60) == 0
    require_the_same(tmp_path / 'live', tmp_path)
