"""`flashrt status` beside running nodes, the values that people look for, and a hundred lives of a node."""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flashrt_ros.nodes.action_streamer import ActionStreamer
from flashrt_ros.nodes.policy_node import PolicyNode
from nodes.graph import wait_until
from nodes.test_strategies_live import Pair

pytestmark = pytest.mark.ros

STATUS = [
    sys.executable,
    '-c',
    'import argparse, sys\n'
    'from flashrt_ros.cli import status\n'
    'parser = argparse.ArgumentParser(); status.add_arguments(parser)\n'
    'sys.exit(status.run(parser.parse_args(sys.argv[1:])))',
]


def test_status_tells_both_nodes_and_their_inputs(graph, robot_yaml):
    pair = Pair(graph, robot_yaml())
    wait_until(lambda: len(pair.commands) > 20, 30.0)

    def good():
        """Busy cores may make a chunk late, which is trouble and passes."""
        seen = subprocess.run([*STATUS, '--once'], capture_output=True, text=True, timeout=60)
        return seen if seen.returncode == 0 else None

    seen = wait_until(good, 60.0, 'a report without trouble')
    assert seen.stderr == ''
    assert '/policy_node  active' in seen.stdout
    assert '/action_streamer  active  running' in seen.stdout
    assert 'motion enabled' in seen.stdout
    assert 'base_0_rgb: ' in seen.stdout
    assert 'inference p99 [ms]' in seen.stdout
    assert 'latency [ms], sensor to chunk' in seen.stdout
    pair.sensors.mute.add('base_0_rgb')
    wait_until(lambda: pair.values('/action_streamer').get('motion') == 'starved')
    trouble = subprocess.run([*STATUS, '--once'], capture_output=True, text=True, timeout=60)
    assert trouble.returncode == 1
    assert 'base_0_rgb: it is' in trouble.stdout
    assert 'motion starved: no chunk came in time' in trouble.stdout


def test_status_without_nodes_says_so(graph):
    seen = subprocess.run([*STATUS, '--once', '--wait', '0.5'], capture_output=True, text=True, timeout=60)
    assert seen.returncode == 1
    assert 'nothing on /diagnostics' in seen.stdout


@pytest.mark.parametrize('node_class', [PolicyNode, ActionStreamer])
def test_a_destroyed_node_leaves_the_graph_though_somebody_holds_it(graph, robot_yaml, node_class):
    node = graph.start(node_class, robot_yaml())
    assert graph.change(node, 'configure', 'activate')
    name = node.get_name()
    wait_until(lambda: name in graph.tester.get_node_names())
    graph.end(node)
    wait_until(lambda: name not in graph.tester.get_node_names(), what='its leave')


def resident_mib():
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('node_class', [PolicyNode, ActionStreamer])
def test_a_hundred_cycles_leave_nothing_behind(graph, robot_yaml, node_class):
    node = graph.start(node_class, robot_yaml())
    cycle = ('configure', 'activate', 'deactivate', 'cleanup')
    seen = []
    for _ in range(100):
        for transition in cycle:
            assert graph.change(node, transition)
        gc.collect()
        seen.append((threading.active_count(), len(os.listdir('/proc/self/fd')), resident_mib()))
    settled, last = seen[19], seen[-1]
    print(f'{node_class.__name__}: threads, files, MiB after 20 cycles {settled}, after 100 {last}')
    assert last[0] == settled[0]
    assert last[1] <= settled[1] + 2
    assert last[2] - settled[2] < 8.0
