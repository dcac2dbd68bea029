"""Threads that take the messages of one subscription, and joint states taken when they are wanted."""

import threading
import time

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from flashrt_ros.ingest.ring import FrameRing
from flashrt_ros.nodes.attending import Attendant, WaitingAttendant
from flashrt_ros.nodes.fastdds_take import FastDdsTake
from flashrt_ros.nodes.polling import Polled, PolledStates, never
from flashrt_ros.nodes.qos import subscribe_latest
from nodes.graph import wait_for_match, wait_until

pytestmark = pytest.mark.ros

OURS = 'nothing of it will arrive'


@pytest.fixture
def node(graph):
    """No executor knows it."""
    node = Node('attended', context=graph.context)
    yield node
    node.destroy_node()


class Taker:
    """Takes strings in a thread; `said` are those that it could."""

    def __init__(self, graph, node):
        self.subscription = node.create_subscription(String, 'talk', never, 10, callback_group=Polled())
        self.said, self.threads = [], set()
        self.publisher = graph.tester.create_publisher(String, 'talk', 10)
        self.attendant = Attendant(node, self.subscription, self.take)
        wait_for_match(self.publisher, self.subscription)

    def take(self):
        message, _ = self.subscription.handle.take_message(String, False)
        self.threads.add(threading.current_thread().name)
        if message.data == 'bad':
            raise ValueError('it is bad')
        self.said.append(message.data)

    def hear(self, *words):
        for word in words:
            self.publisher.publish(String(data=word))
        wait_until(lambda: self.said[-1:] == [words[-1]], what=words[-1])


def attending():
    return [thread for thread in threading.enumerate() if thread.name.startswith('take ')]


def test_messages_are_taken_though_no_executor_spins(graph, node):
    taker = Taker(graph, node)
    taker.hear(*(str(index) for index in range(10)))
    assert taker.said == [str(index) for index in range(10)]
    assert taker.threads == {'take /talk'}
    taker.attendant.stop()


def test_one_that_cannot_be_taken_does_not_end_it(graph, node, capfd):
    taker = Taker(graph, node)
    taker.hear('one', 'bad', 'two')
    assert taker.said == ['one', 'two']
    assert 'it is bad' in capfd.readouterr().err
    taker.attendant.stop()


def test_it_ends_when_it_is_told_to_though_nothing_comes(graph, node):
    before = len(attending())
    taker = Taker(graph, node)
    assert len(attending()) == before + 1
    began = time.monotonic()
    taker.attendant.stop()
    assert len(attending()) == before
    assert time.monotonic() - began < 0.3


def finding(node, subscription):
    """Waits in a wait set."""
    return Attendant(node, subscription, lambda: None)


def waiting(node, subscription):
    """Its take waits in Fast DDS."""
    take = FastDdsTake(subscription, FrameRing())

    def take_one():
        take()
        take.prepare()

    return WaitingAttendant(node, subscription, take_one, take.wake, take.close)


both_kinds = pytest.mark.parametrize('kind', [finding, waiting])


@both_kinds
def test_it_ends_with_the_context(ros_domain, kind):
    before, context = len(attending()), Context()
    rclpy.init(context=context, domain_id=ros_domain)
    node = Node('attended', context=context)
    subscription = node.create_subscription(String, 'talk', never, 10, callback_group=Polled())
    attendant = kind(node, subscription)
    assert len(attending()) == before + 1
    context.try_shutdown()
    wait_until(lambda: len(attending()) == before, timeout=5.0, what='the end of the thread')
    attendant.stop()
    node.destroy_node()


@both_kinds
def test_a_publisher_that_nothing_arrives_of_is_told(graph, node, capfd, kind):
    """The event comes by the same thread as messages. rclpy warns of the publisher, too, in other words."""
    reliable = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
    subscription = subscribe_latest(node, String, 'talk', never, Polled(), reliable)
    attendant = kind(node, subscription)
    graph.tester.create_publisher(
        String, 'talk', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    heard = []
    wait_until(lambda: heard.append(capfd.readouterr().err) or OURS in ''.join(heard), what=OURS)
    attendant.stop()
    assert "a publisher on 'talk' offers an incompatible QoS" in ''.join(heard)


def test_one_whose_take_waits_ends_at_once_though_nothing_comes(graph, node):
    before = len(attending())
    subscription = node.create_subscription(String, 'talk', never, 10, callback_group=Polled())
    attendant = waiting(node, subscription)
    time.sleep(0.1)  # it waits by now
    began = time.monotonic()
    attendant.stop()
    assert time.monotonic() - began < 0.1
    assert len(attending()) == before
    node.destroy_subscription(subscription)


def test_nothing_breaks_when_the_subscription_goes_first(graph, node):
    before = len(attending())
    publisher = graph.tester.create_publisher(String, 'talk', 10)
    for _ in range(5):
        subscription = node.create_subscription(String, 'talk', never, 10, callback_group=Polled())
        attendant = waiting(node, subscription)
        wait_for_match(publisher, subscription)
        node.destroy_subscription(subscription)
        publisher.publish(String(data='to whom?'))
        attendant.stop()
    assert len(attending()) == before


def test_every_joint_state_is_taken_with_the_time_at_which_it_came(graph, node):
    kept = []
    states = PolledStates(node, 'joint_states', lambda message, came_ns: kept.append((message, came_ns)))
    publisher = graph.tester.create_publisher(JointState, 'joint_states', 50)
    wait_for_match(publisher, states.subscription)
    sent = []
    for index in range(20):
        sent.append(time.time_ns())
        publisher.publish(JointState(name=['a'], position=[float(index)]))
        time.sleep(0.005)
    time.sleep(0.3)  # nobody asks
    states.take()
    assert [deserialize_message(message, JointState).position[0] for message, _ in kept] == list(range(20))
    late_s = [(came - at) * 1e-9 for (_, came), at in zip(kept, sent, strict=True)]
    assert min(late_s) >= 0
    assert sorted(late_s)[10] < 0.1
    states.take()
    assert len(kept) == 20
