"""Marks of stages without ROS: off, into a file, and what is said where that cannot be. NVTX: test/nodes."""

import json
import sys
import threading
import time

import pytest

from flashrt_ros import tracing
from flashrt_ros.configuration.load import parse_config
from flashrt_ros.configuration.tracing import Tracing
from flashrt_ros.errors import ConfigError
from flashrt_ros.tracing import stage


@pytest.fixture(autouse=True)
def _nothing_stays_on():
    yield
    tracing.use(None)


def traced(tmp_path, work):
    """The stages of a trace written to a file, in its order, and the file's other events."""
    tracer = tracing.tracer_of(
        Tracing(to='file', folder=str(tmp_path / 'new' / 'folder')), 'left.policy_node'
    )
    tracing.use(tracer)
    work()
    tracing.use(None)
    said = tracer.finish()
    events = json.loads((tmp_path / 'new' / 'folder' / 'left.policy_node.json').read_text())
    stages = [event for event in events if event['ph'] == 'X']
    assert f'{len(stages)} stages in ' in said
    return stages, [event for event in events if event['ph'] != 'X']


def test_without_being_asked_nothing_is_marked():
    assert tracing.tracer_of(Tracing(), 'policy_node') is None
    with stage('tick') as outer, stage('take') as inner:
        assert outer is inner is None


def test_a_file_holds_the_stages_in_the_order_in_which_they_began(tmp_path):
    def work():
        with stage('tick'):
            time.sleep(0.002)
            with stage('take'):
                time.sleep(0.003)
            with pytest.raises(KeyError), stage('inference'):
                raise KeyError
        with stage('not over'):
            tracing.use(None)
        with stage('after'):
            pass

    (tick, take, inference, last), others = traced(tmp_path, work)
    assert [event['name'] for event in (tick, take, inference, last)] == [
        'tick',
        'take',
        'inference',
        'not over',
    ]
    assert tick['ts'] + 2000 <= take['ts'] <= inference['ts'] - 3000
    assert 3000 <= take['dur'] < tick['dur'] - 2000
    assert tick['ts'] + tick['dur'] >= inference['ts'] + inference['dur']
    assert ('process_name', 'left.policy_node') in [
        (event['name'], event['args']['name']) for event in others
    ]


def test_every_thread_has_a_line_of_its_own(tmp_path):
    def mark(name):
        with stage(name):
            pass

    def work():
        thread = threading.Thread(target=mark, args=('command',), name='commands')
        thread.start()
        thread.join()
        mark('accept')

    (command, accept), others = traced(tmp_path, work)
    assert command['tid'] != accept['tid']
    names = {event['tid']: event['args']['name'] for event in others if event['name'] == 'thread_name'}
    assert names[command['tid']] == 'commands'


def test_only_the_latest_stages_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr('flashrt_ros.tracing.KEPT', 5)

    def work():
        for number in range(12):
            with stage(str(number)):
                pass

    stages, _ = traced(tmp_path, work)
    assert [event['name'] for event in stages] == ['7', '8', '9', '10', '11']


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=r'tracing\.folder: traces cannot be written there .*Give a folder'):
        tracing.tracer_of(Tracing(to='file', folder=str(tmp_path / 'file')), 'policy_node')


def test_without_the_package_nvtx_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'nvtx', None)
    with pytest.raises(
        ConfigError, match=r'tracing\.to: the Python package nvtx .*Install it \(pip install nvtx\)'
    ):
        tracing.tracer_of(Tracing(to='nvtx'), 'policy_node')


def test_the_configuration_asks_for_a_folder_and_finds_it_beside_the_file(tmp_path):
    robot = {
        'robot': {'name': 'r', 'joints': [{'name': 'a'}]},
        'cameras': {'front': {'topic': '/front'}},
        'policy': {'checkpoint': 'c'},
        'rates': {'chunk_rate_hz': 1.0, 'action_rate_hz': 1.0, 'control_rate_hz': 1.0},
        'output': {'type': 'joint_state', 'topic': '/out'},
    }
    config = parse_config({**robot, 'tracing': {'to': 'file', 'folder': 'traces'}}, 'x', tmp_path)
    assert config.tracing.folder == str(tmp_path / 'traces')
    with pytest.raises(ConfigError, match=r'tracing\.folder: the traces have no place to go'):
        parse_config({**robot, 'tracing': {'to': 'file'}}, 'x', tmp_path)
    with pytest.raises(ConfigError, match=r'tracing\.to'):
        parse_config({**robot, 'tracing': {'to': 'lttng'}}, 'x', tmp_path)
