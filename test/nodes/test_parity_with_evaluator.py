"""The node over real DDS and the evaluator without ROS compute the same chunks from the same bag."""

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from evaluation.robots import JOINTS, BagMaker, write_config
from flashrt_ros.msg import ActionChunk, InferenceStats
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState

from flashrt_ros.cli.main import main
from flashrt_ros.control import chunk_from_message
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.evaluation.replay.episode import load_episode
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import TINY_PI05
from flashrt_ros.nodes.policy_node import PolicyNode
from nodes.graph import wait_until

pytestmark = pytest.mark.ros

INPUTS = {
    '/front': ('base_0_rgb', Image),
    '/wrist': ('left_wrist_0_rgb', CompressedImage),
    '/joint_states': ('state', JointState),
}
PERIOD_NS = 200_000_000


class SimulatedTime:
    """Time that stands still until it is set."""

    def __init__(self, graph, begin_ns):
        self._publisher = graph.tester.create_publisher(Clock, '/clock', 10)
        self.now_ns = begin_ns

    def set(self, now_ns, node):
        self.now_ns = now_ns
        message = Clock(clock=Time(sec=now_ns // 10**9, nanosec=now_ns % 10**9))

        def reached():
            self._publisher.publish(message)
            return node.get_clock().now().nanoseconds == now_ns

        wait_until(reached, what='the simulated time')


def play(graph, bag, node):
    """Every message that comes before a tick is sent before it; then time moves to the tick."""
    worker, tester = node._worker, graph.tester
    publishers = {topic: tester.create_publisher(kind, topic, 1) for topic, (_, kind) in INPUTS.items()}
    for topic, publisher in publishers.items():
        wait_until(publisher.get_subscription_count, what=f'a subscription of {topic}')
    stats = graph.watch(InferenceStats, 'inference_stats')
    chunks = graph.watch(ActionChunk, 'action_chunk')
    wait_until(lambda: tester.count_publishers('/action_chunk'), what='the publisher of chunks')
    time = SimulatedTime(graph, bag.start_ns)
    time.set(bag.start_ns, node)
    sent = dict.fromkeys(publishers, 0)
    records = [record for record in bag.records() if record.topic in INPUTS]
    ticks = range(bag.start_ns, bag.end_ns + 1, PERIOD_NS)
    for number, tick_ns in enumerate(ticks):
        while records and records[0].time_ns <= tick_ns:
            record = records.pop(0)
            publishers[record.topic].publish(record.data)
            sent[record.topic] += 1
            stream = worker.ingest.streams[INPUTS[record.topic][0]]
            wait_until(lambda s=stream, n=sent[record.topic]: s.counts.received == n, what=record.topic)
        if number == 0:
            assert graph.change(node, 'activate')
        else:
            time.set(tick_ns, node)
        wait_until(lambda n=number: len(stats) > n, what=f'tick {number}')
    blocked = [message.blocked for _, message in stats]
    expected = len(stats) - sum(map(bool, blocked))
    wait_until(lambda: len(chunks) == expected, what='the last chunk')
    return [chunk_from_message(message) for _, message in chunks], blocked


def test_node_and_evaluator_give_the_same_chunks(graph, tmp_path):
    checkpoint = write_random_checkpoint(
        tmp_path / 'tiny', TINY_PI05, state_dim=len(JOINTS), action_dim=len(JOINTS)
    )
    robot = write_config(
        tmp_path / 'robot.yaml', checkpoint, policy={'checkpoint': str(checkpoint), 'seed': 5}
    )
    path = BagMaker(seconds=2.0, joints=('gripper', 'extra', 'a', 'b')).write(tmp_path / 'episode')
    words = ['evaluate', str(path), '--config', str(robot), '--seed', '5', '--no-report']
    assert main([*words, '--out', str(tmp_path / 'out')]) == 0
    episode = load_episode(tmp_path / 'out/robot/episode/episode.npz')

    node = graph.start(PolicyNode, robot)
    node.set_parameters([Parameter('use_sim_time', value=True)])
    graph.tester.set_parameters([Parameter('use_sim_time', value=True)])
    assert graph.change(node, 'configure')
    with open_bag(path) as bag:
        chunks, blocked = play(graph, bag, node)

    assert len(chunks) == episode.chunks == 9
    assert [bool(reason) for reason in blocked] == (episode.blocked >= 0).tolist()
    assert [chunk.observed_ns for chunk in chunks] == episode.observed_ns.tolist()
    assert [chunk.start_ns for chunk in chunks] == episode.start_ns.tolist()
    assert chunks[0].names == episode.joints
    # The message carries float32.
    np.testing.assert_array_equal(
        np.array([chunk.actions for chunk in chunks]), episode.actions.astype(np.float32).astype(np.float64)
    )
