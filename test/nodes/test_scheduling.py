"""The streamer's priority and CPUs, as the operating system sees them, in a process of its own."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from rights import may_have_priority, without_right

from flashrt_ros.scheduling import TURN_NS, turn_of
from nodes.graph import Sensors
from nodes.test_processes import drive

pytestmark = pytest.mark.ros

CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE


def keeps_turns():
    """Linux keeps what is asked for a turn since 6.12."""
    major, minor = os.uname().release.split('.')[:2]
    return (int(major), int(re.match(r'\d+', minor)[0])) >= (6, 12)


def scheduled(process):
    """(policy, priority, CPUs) of each thread of a process."""
    threads = [int(entry.name) for entry in Path(f'/proc/{process.pid}/task').iterdir()]
    return [
        (os.sched_getscheduler(one), os.sched_getparam(one).sched_priority, os.sched_getaffinity(one))
        for one in threads
    ]


def reported(graph, seen):
    """What the streamer says of its scheduling."""
    message = graph.messages_after(seen, lambda array: array.status[0].name.endswith('action_streamer'))
    return {pair.key: pair.value for pair in message.status[0].values}['scheduling']


def cpu_s(process):
    threads = Path(f'/proc/{process.pid}/task').iterdir()
    return sum(int((one / 'schedstat').read_text().split()[0]) for one in threads) * 1e-9


def test_joint_states_keep_a_waiting_streamer_no_busier_than_it_is_without(graph, start, robot_yaml):
    """They are looked at 50 times a second; what lies there unread meanwhile must not wake it."""
    streamer = start('action_streamer', f'config:={robot_yaml()}')
    drive(graph, 'action_streamer', CONFIGURE)
    Sensors(graph)
    time.sleep(1.0)
    before = cpu_s(streamer)
    time.sleep(3.0)
    assert cpu_s(streamer) - before < 0.25 * 3.0


@pytest.mark.skipif(not may_have_priority(), reason='this user has no right to real-time priority')
def test_all_threads_have_the_priority_and_the_command_thread_one_above(graph, start, robot_yaml):
    cpu = min(os.sched_getaffinity(0))
    config = robot_yaml({'scheduling': {'streamer_priority': 50, 'streamer_cpus': [cpu]}})
    seen = graph.watch(DiagnosticArray, '/diagnostics')
    streamer = start('action_streamer', f'config:={config}')
    drive(graph, 'action_streamer', CONFIGURE)
    assert {(os.SCHED_FIFO, 50)} == {one[:2] for one in scheduled(streamer)}
    drive(graph, 'action_streamer', ACTIVATE)
    threads = scheduled(streamer)
    assert sorted(one[:2] for one in threads)[-2:] == [(os.SCHED_FIFO, 50), (os.SCHED_FIFO, 51)]
    assert {frozenset(one[2]) for one in threads} == {frozenset({cpu})}
    assert reported(graph, seen) == 'SCHED_FIFO 50'


@pytest.mark.skipif(not keeps_turns(), reason='Linux looks at the length of turns since 6.12')
@pytest.mark.parametrize('denied', [False, True])
def test_without_priority_every_thread_takes_short_turns(graph, start, robot_yaml, denied):
    config = robot_yaml({'scheduling': {'streamer_priority': 50}} if denied else {})
    seen = graph.watch(DiagnosticArray, '/diagnostics')
    streamer = start('action_streamer', f'config:={config}', in_child=without_right if denied else None)
    drive(graph, 'action_streamer', CONFIGURE, ACTIVATE)
    threads = [int(entry.name) for entry in Path(f'/proc/{streamer.pid}/task').iterdir()]
    assert {turn_of(one) for one in threads} == {TURN_NS}
    assert 'turns of 0.1 ms' in reported(graph, seen)


@pytest.mark.skipif(not may_have_priority(), reason='this user has no right to real-time priority')
def test_a_priority_that_the_process_was_started_with_is_kept(graph, start, robot_yaml):
    def with_priority():
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))

    streamer = start('action_streamer', f'config:={robot_yaml()}', in_child=with_priority)
    drive(graph, 'action_streamer', CONFIGURE, ACTIVATE)
    assert {(os.SCHED_FIFO, 20)} == {one[:2] for one in scheduled(streamer)}


def test_without_the_setting_the_streamer_has_no_priority(graph, start, robot_yaml):
    seen = graph.watch(DiagnosticArray, '/diagnostics')
    streamer = start('action_streamer', f'config:={robot_yaml()}')
    drive(graph, 'action_streamer', CONFIGURE, ACTIVATE)
    assert {one[0] for one in scheduled(streamer)} == {os.SCHED_OTHER}
    assert {frozenset(one[2]) for one in scheduled(streamer)} == {frozenset(os.sched_getaffinity(0))}
    assert reported(graph, seen).startswith('usual')


def test_a_priority_that_is_denied_is_told_and_the_node_runs(graph, start, robot_yaml):
    config = robot_yaml({'scheduling': {'streamer_priority': 50, 'streamer_cpus': [9999]}})
    seen = graph.watch(DiagnosticArray, '/diagnostics')
    streamer = start('action_streamer', f'config:={config}', in_child=without_right)
    drive(graph, 'action_streamer', CONFIGURE, ACTIVATE)
    assert {one[0] for one in scheduled(streamer)} == {os.SCHED_OTHER}
    assert 'real-time priority 50 is denied' in reported(graph, seen)
    log = streamer.output()
    assert re.search(r'WARN.*scheduling\.streamer_priority: .*denied.*rtprio', log)
    assert re.search(r'WARN.*scheduling\.streamer_cpus: CPU 9999 does not exist', log)
    streamer.send_signal(signal.SIGINT)
    assert streamer.wait(10) == 0
