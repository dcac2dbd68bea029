"""A ROS graph for one test: nodes under test, a tester that watches and drives them, and fake sensors."""

import io
import threading
import time

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from PIL import Image as Picture
from rclpy.clock import Clock as SteadyClock
from rclpy.clock import ClockType
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState

SECOND = 1_000_000_000
PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
TRANSITIONS = {
    'configure': Transition.TRANSITION_CONFIGURE,
    'activate': Transition.TRANSITION_ACTIVATE,
    'deactivate': Transition.TRANSITION_DEACTIVATE,
    'cleanup': Transition.TRANSITION_CLEANUP,
}


def wait_until(condition, timeout=10.0, what='the condition'):
    """Return the first true value of `condition()`."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f'{what} did not come true within {timeout} s')


def wait_for_match(publisher, subscription):
    """Until writer and reader each know the other, what is sent is lost."""
    wait_until(publisher.get_subscription_count, what=f'a subscription of {publisher.topic_name}')
    if hasattr(subscription, 'get_publisher_count'):
        wait_until(subscription.get_publisher_count, what=f'a publisher on {subscription.topic_name}')
    else:
        time.sleep(0.5)


class Spinning:
    """A node spun by a thread of its own.

    rclpy's shutdown of an executor does not wait for the thread that spins it, and takes away what that
    thread uses. Here the thread ends first.
    """

    def __init__(self, node, context):
        self._node, self._executor = node, SingleThreadedExecutor(context=context)
        self._executor.add_node(node)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self):
        while not self._ending.is_set():
            self._executor.spin_once(timeout_sec=1.0)

    def end(self):
        self._ending.set()
        self._executor.wake()
        self._thread.join()
        self._executor.shutdown()
        if hasattr(self._node, 'end'):
            self._node.end()
        self._node.destroy_node()


class Graph:
    """Nodes of one context, each spun by a thread of its own."""

    def __init__(self, domain):
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self._running = {}
        self._clients = {}
        self.tester = self.add(Node('tester', context=self.context))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node in reversed(list(self._running)):
            self.end(node)
        rclpy.shutdown(context=self.context)

    def add(self, node):
        self._running[node] = Spinning(node, self.context)
        return node

    def end(self, node):
        """End a node, which leaves the graph."""
        self._running.pop(node).end()

    def start(self, node_class, config, **parameters):
        """A node of ours, unconfigured. parameters: overrides; '__' stands for '.'."""
        overrides = [Parameter('config', value=str(config))]
        overrides += [Parameter(key.replace('__', '.'), value=value) for key, value in parameters.items()]
        return self.add(node_class(context=self.context, parameter_overrides=overrides))

    def change(self, node, *transitions):
        """Drive a node through transitions by its service. Returns whether the last one succeeded."""
        client = self._client(ChangeState, f'{node.get_name()}/change_state')
        for transition in transitions:
            answer = self.call(
                client, ChangeState.Request(transition=Transition(id=TRANSITIONS[transition])), 60.0
            )
        return answer.success

    def state(self, node):
        client = self._client(GetState, f'{node.get_name()}/get_state')
        return self.call(client, GetState.Request()).current_state.label

    def call(self, client, request, timeout=10.0):
        assert client.wait_for_service(timeout)
        future = client.call_async(request)
        wait_until(future.done, timeout, client.srv_name)
        return future.result()

    def _client(self, service, name):
        if name not in self._clients:
            self._clients[name] = self.tester.create_client(service, name)
        return self._clients[name]

    def client(self, service, name):
        return self._client(service, name)

    def simulate_time(self, begin_ns, speed):
        """Publish /clock at 100 Hz, and let the tester stamp with it. Returns what the test may change."""
        clock = self.tester.create_publisher(Clock, '/clock', 10)
        simulated = {'now': begin_ns, 'running': True}

        def advance():
            simulated['now'] += int(0.01 * speed * SECOND) * simulated['running']
            seconds, nanoseconds = divmod(simulated['now'], SECOND)
            clock.publish(Clock(clock=Time(sec=seconds, nanosec=nanoseconds)))

        self.tester.create_timer(0.01, advance, clock=SteadyClock(clock_type=ClockType.STEADY_TIME))
        self.tester.set_parameters([Parameter('use_sim_time', value=True)])
        wait_until(
            lambda: self.tester.get_clock().now().nanoseconds in range(begin_ns, begin_ns + 100 * SECOND)
        )
        return simulated

    def watch(self, message_type, topic, qos=50):
        """A list that every message of a topic is appended to, as (monotonic time, message)."""
        seen = []
        self.tester.create_subscription(
            message_type, topic, lambda m: seen.append((time.monotonic(), m)), qos
        )
        return seen

    def messages_after(self, seen, condition=lambda _: True, timeout=10.0, what='a message'):
        """The first message that comes from now on and meets the condition."""
        begin = len(seen)

        def found():
            return [message for _, message in seen[begin:] if condition(message)]

        return wait_until(found, timeout, what)[0]


class Sensors:
    """Two cameras at 25 Hz and joint states at 50 Hz, stamped by the tester's clock.

    mute: names of inputs that are silent now. change: name -> function applied to each message when sent.
    stamps: name -> stamps sent [ns].
    """

    def __init__(self, graph, joints=('c', 'extra', 'a', 'b'), positions=(0.3, 9.0, 0.1, 0.2)):
        self._node = graph.tester
        self._publishers = {
            'base_0_rgb': self._node.create_publisher(Image, '/front', 1),
            'left_wrist_0_rgb': self._node.create_publisher(CompressedImage, '/wrist', 1),
            'state': self._node.create_publisher(JointState, '/joint_states', 1),
        }
        buffer = io.BytesIO()
        Picture.fromarray(PIXELS).save(buffer, 'JPEG')
        self._jpeg = buffer.getvalue()
        self._joints, self._positions = list(joints), list(positions)
        self.mute, self.change = set(), {}
        self.stamps = {name: [] for name in self._publishers}
        steady = SteadyClock(clock_type=ClockType.STEADY_TIME)
        self._node.create_timer(0.04, self._cameras, clock=steady)
        self._node.create_timer(0.02, lambda: self._send('state', self._joint_state()), clock=steady)

    def _cameras(self):
        height, width, _ = PIXELS.shape
        raw = Image(height=height, width=width, encoding='rgb8', step=width * 3, data=PIXELS.tobytes())
        self._send('base_0_rgb', raw)
        self._send('left_wrist_0_rgb', CompressedImage(format='jpeg', data=self._jpeg))

    def _joint_state(self):
        return JointState(name=self._joints, position=self._positions)

    def _send(self, name, message):
        if name in self.mute:
            return
        now = self._node.get_clock().now()
        message.header.stamp = now.to_msg()
        self.stamps[name].append(now.nanoseconds)
        self.change.get(name, lambda _: None)(message)
        self._publishers[name].publish(message)
