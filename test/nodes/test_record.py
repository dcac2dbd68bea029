"""`flashrt record` beside running nodes, and the metrics of what it recorded."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from flashrt_ros.msg import ActionChunk
from rclpy.duration import Duration
from trajectory_msgs.msg import JointTrajectory

from flashrt_ros.cli.main import main
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.evaluation.replay.episode import load_episode
from flashrt_ros.nodes.action_streamer import ActionStreamer
from flashrt_ros.nodes.policy_node import PolicyNode
from nodes.graph import Sensors, wait_until

pytestmark = pytest.mark.ros


def test_a_live_run_is_recorded_and_evaluated(graph, robot_yaml, tmp_path):
    yaml = robot_yaml()
    Sensors(graph)
    nodes = [graph.start(node_class, yaml) for node_class in (PolicyNode, ActionStreamer)]
    for node in nodes:
        assert graph.change(node, 'configure')
    words = [sys.executable, '-m', 'flashrt_ros.cli', 'record', '--config', str(yaml)]
    recorder = subprocess.Popen(
        [*words, '--out', str(tmp_path / 'live')], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    # Matched with it, not only seen in the graph: the first chunks go to whoever is.
    (publisher,) = (one for one in nodes[0].publishers if one.topic_name == '/action_chunk')
    wait_until(lambda: publisher.get_subscription_count() >= 2, 30, 'the recorder')
    for node in nodes:
        assert graph.change(node, 'activate')
    chunks = graph.watch(ActionChunk, 'action_chunk')
    wait_until(lambda: len(chunks) >= 10, 30, 'ten chunks')
    recorder.send_signal(signal.SIGINT)
    told = recorder.communicate(timeout=30)[0]
    assert recorder.returncode == 0
    assert '/action_chunk' in told

    out = tmp_path / 'out'
    words = ['evaluate', str(tmp_path / 'live'), '--config', str(yaml), '--out', str(out)]
    assert main([*words, '--from-topics']) == 0
    episode = load_episode(out / 'robot/live/episode.npz')
    assert episode.chunks >= 9
    # The sensors' stamps are those of the chunks, and the reference is where the robot stood.
    # What came before the recorder was connected, or was lost on a best-effort topic, is not in the bag.
    stamps = {int(stamp) for array in episode.stamps_ns.values() for stamp in array}
    assert len(set(episode.observed_ns.tolist()) - stamps) <= 2
    assert episode.reference_topic == '/joint_states'
    np.testing.assert_allclose(episode.measured[0], [0.1, 0.2, 0.3])
    assert (episode.ready_ns >= episode.looked_ns).all()
    found = json.loads((out / 'evaluation.json').read_text())['variants']['robot']
    assert found['metrics']['staleness.all.p50']['value'] > 0
    assert found['metrics']['command_error.all.mae']['count'] > 0
    timing = json.loads((out / 'timing.json').read_text())['variants']['robot']
    assert timing['stage.inference.p50']['value'] > 0
    with open_bag(tmp_path / 'live') as bag:
        assert bag.topics['/commands'].count > 10


@pytest.mark.parametrize('ending', [signal.SIGINT, signal.SIGTERM])
def test_what_has_come_when_it_is_told_to_end_is_in_the_bag(graph, robot_yaml, tmp_path, ending):
    words = [sys.executable, '-m', 'flashrt_ros.cli', 'record', '--config', str(robot_yaml())]
    recorder = subprocess.Popen([*words, '--out', str(tmp_path / 'live')], env=os.environ)
    publisher = graph.tester.create_publisher(JointTrajectory, '/commands', 1000)
    wait_until(publisher.get_subscription_count, 30, 'the recorder')
    for _ in range(950):
        publisher.publish(JointTrajectory())
    assert publisher.wait_for_all_acked(Duration(seconds=10))
    recorder.send_signal(ending)
    assert recorder.wait(30) == 0
    with open_bag(tmp_path / 'live') as bag:
        assert bag.topics['/commands'].count == 950


def test_a_bag_without_nodes_is_told_apart(robot_yaml, tmp_path, capsys):
    from evaluation.robots import BagMaker

    bag = BagMaker().write(tmp_path / 'bag')
    words = ['evaluate', str(bag), '--config', str(robot_yaml()), '--out', str(tmp_path / 'out')]
    assert main([*words, '--from-topics']) == 2
    assert "there is no topic '/action_chunk' in it" in capsys.readouterr().err
