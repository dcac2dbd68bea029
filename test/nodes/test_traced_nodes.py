"""The stages of both nodes as a profiler sees them: real processes, and a tool of NVTX that listens."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from flashrt_ros.msg import ActionChunk
from lifecycle_msgs.msg import Transition

from flashrt_ros.nodes.action_streamer import ActionStreamer
from nodes.graph import Sensors, wait_until
from nodes.test_action_streamer import World
from nodes.test_processes import drive

pytestmark = pytest.mark.ros

POLICY = {
    ('', 'wait'),
    ('', 'tick'),
    ('tick', 'take'),
    ('tick', 'inference'),
    *(('inference', name) for name in ('preprocess', 'vision', 'prefill', 'denoise', 'postprocess')),
    ('tick', 'publish'),
}
"""(stage around it or '', stage). Names are those of InferenceStats where it has the stage."""

STREAMER = {('', 'command'), ('', 'tick'), ('tick', 'command'), ('tick', 'publish'), ('', 'accept')}


@pytest.fixture(scope='session')
def listener(tmp_path_factory):
    """The library that NVTX loads into a process."""
    compiler = shutil.which('gcc') or shutil.which('cc')
    if compiler is None:
        pytest.skip('no C compiler to build the NVTX listener with')
    library = tmp_path_factory.mktemp('nvtx') / 'listener.so'
    source = Path(__file__).with_name('nvtx_listener.c')
    subprocess.run([compiler, '-shared', '-fPIC', '-Wall', '-Werror', '-o', library, source], check=True)
    return library


def nesting(file):
    """The set of (stage around it or '', stage) that a listener heard; ranges must close as they opened."""
    stacks, seen = defaultdict(list), set()
    for line in file.read_text().splitlines():
        thread, act, domain, *name = line.split()
        assert domain == 'flashrt_ros'
        stack = stacks[thread]
        if act == 'push':
            seen.add((stack[-1] if stack else '', name[0]))
            stack.append(name[0])
        else:
            stack.pop()
    assert not any(stacks.values())
    return seen


@pytest.mark.parametrize(
    ('traced', 'stages'), [('policy_node', POLICY), ('action_streamer', STREAMER)], ids=['policy', 'streamer']
)
def test_nvtx_hears_the_stages_of_a_node_that_was_asked_and_nothing_of_the_other(
    graph, start, robot_yaml, tmp_path, listener, traced, stages
):
    pytest.importorskip('nvtx')
    Sensors(graph)
    chunks = graph.watch(ActionChunk, 'action_chunk')
    config = robot_yaml({'rates.trigger': 'frame'})
    processes = []
    for name in ('action_streamer', 'policy_node'):
        heard = {
            'NVTX_INJECTION64_PATH': str(listener),
            'NVTX_LISTENER_FILE': str(tmp_path / f'{name}.heard'),
        }
        asked = ['tracing.to:=nvtx'] if name == traced else []
        processes.append(start(name, f'config:={config}', *asked, **heard))
    for name in ('action_streamer', 'policy_node'):
        drive(graph, name, Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    executing = graph.watch(ActionChunk, 'executing_chunk')
    wait_until(lambda: len(chunks) > 5 and len(executing) > 5, 30.0, 'chunks, executed')
    for process in processes:
        process.terminate()
        assert process.wait(20) == 0
    assert nesting(tmp_path / f'{traced}.heard') == stages
    assert [file.name for file in tmp_path.glob('*.heard')] == [f'{traced}.heard']


def test_a_streamer_writes_its_trace_whenever_it_is_deactivated(graph, robot_yaml, tmp_path):
    world = World(graph, robot_yaml({'tracing': {'to': 'file', 'folder': 'traces'}}))
    trace = tmp_path / 'traces' / 'action_streamer.json'

    def ticks():
        events = [event for event in json.loads(trace.read_text()) if event['ph'] == 'X']
        assert {event['name'] for event in events} == {'tick', 'command', 'publish', 'accept'}
        assert [event['ts'] for event in events] == sorted(event['ts'] for event in events)
        assert {event['pid'] for event in events} == {os.getpid()}
        return sum(event['name'] == 'tick' for event in events)

    world.send(world.chunk([[0.1, 0.2, 0.3]] * 10))
    wait_until(lambda: len(world.commands) > 20)
    assert graph.change(world.node, 'deactivate')
    first = ticks()
    assert first > 20
    assert graph.change(world.node, 'activate')
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 10))
    count = len(world.commands)
    wait_until(lambda: len(world.commands) > count + 20)
    assert graph.change(world.node, 'deactivate')
    assert ticks() > first + 20


def test_a_node_without_the_package_refuses_to_be_configured(graph, robot_yaml, monkeypatch):
    monkeypatch.setitem(sys.modules, 'nvtx', None)
    node = graph.start(ActionStreamer, robot_yaml({'tracing': {'to': 'nvtx'}}))
    assert not graph.change(node, 'configure')
    assert graph.state(node) == 'unconfigured'
