"""The streamer in a real graph: chunks in, commands at the control rate out."""

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from flashrt_ros.msg import ActionChunk
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from flashrt_ros.control import Chunk, chunk_from_message
from flashrt_ros.ingest.stream import stamp_ns
from flashrt_ros.nodes.action_streamer import ActionStreamer
from flashrt_ros.nodes.messages import chunk_to_message
from nodes.graph import Sensors, wait_for_match, wait_until

pytestmark = pytest.mark.ros

SECOND = 1_000_000_000
NAMES = ('a', 'b', 'c')


class World:
    """An active streamer, joint states, a publisher of chunks, and the commands that come out."""

    def __init__(self, graph, config, command_type=JointTrajectory, **parameters):
        self.graph = graph
        self.sensors = Sensors(graph)
        self.commands = graph.watch(command_type, '/commands')
        self.diagnostics = graph.watch(DiagnosticArray, '/diagnostics')
        self._publisher = graph.tester.create_publisher(ActionChunk, 'action_chunk', 1)
        self.node = graph.start(ActionStreamer, config, **parameters)
        assert graph.change(self.node, 'configure', 'activate')
        wait_for_match(self._publisher, self.node._inputs[0])
        wait_until(lambda: self.node._worker.state.latest(), what='a joint state')
        self.sequence = 0

    def chunk(self, rows, names=NAMES, observed_ns=None, step_s=0.05):
        now = self.graph.tester.get_clock().now().nanoseconds if observed_ns is None else observed_ns
        actions = np.asarray(rows, dtype=np.float64)
        self.sequence += 1
        return Chunk('test', tuple(names), actions, now, now, round(step_s * SECOND), 1, self.sequence)

    def send(self, chunk):
        self._publisher.publish(chunk_to_message(chunk, chunk.start_ns))

    def values(self):
        """The newest report of the streamer, as key -> text."""
        statuses = [
            s for _, array in list(self.diagnostics) for s in array.status if s.name == '/action_streamer'
        ]
        return (
            {v.key: v.value for v in statuses[-1].values} | {'message': statuses[-1].message}
            if statuses
            else {}
        )


def positions(message):
    return list(
        message.data
        if hasattr(message, 'data')
        else getattr(message, 'position', None) or message.points[0].positions
    )


@pytest.mark.parametrize(
    ('output', 'command_type'),
    [
        ('joint_trajectory', JointTrajectory),
        ('float64_multi_array', Float64MultiArray),
        ('joint_state', JointState),
    ],
)
def test_commands_come_at_the_control_rate_in_the_chosen_type(graph, robot_yaml, output, command_type):
    world = World(graph, robot_yaml({'output.type': output}), command_type)
    world.send(world.chunk([[0.1 * row, 0.2, 0.3] for row in range(20)]))
    wait_until(lambda: len(world.commands) > 60)
    arrivals = np.array([at for at, _ in world.commands])
    assert 1.0 / np.median(np.diff(arrivals)) == pytest.approx(100.0, rel=0.1)
    told = np.array([positions(message) for _, message in world.commands])
    np.testing.assert_allclose(told[:, 1:], np.tile([0.2, 0.3], (len(told), 1)), atol=1e-6)
    # 0.1 per row of 50 ms is 2 per second.
    np.testing.assert_allclose(np.diff(told[:, 0]).sum() / (arrivals[-1] - arrivals[0]), 2.0, rtol=0.25)
    last = world.commands[-1][1]
    if output == 'joint_trajectory':
        assert list(last.joint_names) == list(NAMES)
        assert (last.header.stamp.sec, last.points[0].time_from_start.nanosec) == (0, 10_000_000)
    if output == 'joint_state':
        assert list(last.name) == list(NAMES)
        stamps = np.array([stamp_ns(message.header.stamp) for _, message in world.commands]) / SECOND
        slope = np.polyfit(stamps[:60] - stamps[0], told[:60, 0], 1)[0]
        assert slope == pytest.approx(2.0, rel=1e-4)


def test_columns_are_matched_by_name_and_pass_the_limits(graph, robot_yaml):
    world = World(graph, robot_yaml())
    world.send(world.chunk([[0.3, 9.0, 0.1]] * 20, names=('c', 'b', 'a')))
    told = positions(graph.messages_after(world.commands))
    assert told == pytest.approx([0.1, 3.0, 0.3])
    wait_until(lambda: int(world.values().get('position_clamps', 0)) > 0)


def test_after_the_last_row_it_holds_then_stops_and_starts_again(graph, robot_yaml):
    world = World(graph, robot_yaml())
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 4))
    wait_until(lambda: world.values().get('phase') == 'stopped')
    spent = world.commands[-1][0] - world.commands[0][0]
    assert spent == pytest.approx(0.2 + 0.2, abs=0.06)
    values = world.values()
    assert (values['underruns'], values['stops']) == ('1', '1')
    assert 'safe action taken' in values['message']
    count = len(world.commands)
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 4))
    wait_until(lambda: len(world.commands) > count + 10)


@pytest.mark.parametrize(
    ('spoil', 'part'),
    [
        (lambda m: m.data.__setitem__(4, float('nan')), "row 1 of joint 'b' is nan"),
        (lambda m: setattr(m, 'names', ['a', 'b', 'd']), 'it is for the joints a, b, d'),
        (lambda m: setattr(m, 'horizon', 3), '60 values and 3 kinds for 3 rows of 3 columns'),
        (
            lambda m: setattr(m, 'kinds', [ActionChunk.JOINT_VELOCITY] * 3),
            'actions of kind 1 are not supported',
        ),
        (lambda m: setattr(m.step, 'nanosec', 0), 'the step of 0 ns is not positive'),
        (lambda m: setattr(m.header.stamp, 'sec', 5), 'too old'),
    ],
)
def test_a_chunk_that_must_not_be_executed_moves_nothing_and_is_told(graph, robot_yaml, spoil, part):
    world = World(graph, robot_yaml())
    message = chunk_to_message(world.chunk([[0.1, 0.2, 0.3]] * 20), 0)
    spoil(message)
    world._publisher.publish(message)
    wait_until(lambda: part in world.values().get('message', ''), what=part)
    assert not world.commands
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 20))
    wait_until(lambda: world.commands)


def test_without_joint_states_no_motion_starts(graph, robot_yaml):
    world = World(graph, robot_yaml())
    world.sensors.mute.add('state')
    time.sleep(0.4)
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 20))
    wait_until(lambda: 'no measured position to start from' in world.values().get('message', ''))
    assert not world.commands
    world.sensors.mute.clear()
    time.sleep(0.1)
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 20))
    wait_until(lambda: world.commands)


def test_it_ramps_from_where_the_robot_stands(graph, robot_yaml):
    world = World(graph, robot_yaml({'executor.ramp_s': 0.5}))
    world.send(world.chunk([[1.1, 1.2, 1.3]] * 20))
    wait_until(lambda: len(world.commands) > 60)
    told = np.array([positions(message) for _, message in world.commands])
    np.testing.assert_allclose(told[0], [0.1, 0.2, 0.3], atol=0.1)
    np.testing.assert_allclose(told[-1], [1.1, 1.2, 1.3], atol=1e-6)
    assert np.diff(told, axis=0).min() >= -1e-9
    assert np.diff(told, axis=0).max() < 0.1


def test_deactivated_it_is_silent_and_drops_what_comes(graph, robot_yaml):
    world = World(graph, robot_yaml())
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 20))
    wait_until(lambda: world.commands)
    assert graph.change(world.node, 'deactivate')
    time.sleep(0.05)
    count = len(world.commands)
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 20))
    time.sleep(0.2)
    assert len(world.commands) == count
    assert graph.change(world.node, 'activate')
    time.sleep(0.1)
    assert len(world.commands) == count
    assert graph.change(world.node, 'deactivate', 'cleanup', 'configure', 'activate')


def test_a_chunk_on_its_way_while_the_robot_comes_to_rest_is_not_followed(graph, robot_yaml):
    """The thread that waits for chunks may have taken it before."""
    world = World(graph, robot_yaml())
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 20))
    wait_until(lambda: world.node._worker._motion.following, what='motion')
    before = world.node._worker._motion.following
    assert graph.change(world.node, 'deactivate')
    late = world.chunk([[0.1, 0.2, 0.3]] * 20)
    world.node._worker.take_chunk(chunk_to_message(late, late.start_ns))
    assert world.node._worker._motion.following in (None, before)


def test_hold_s_may_change_while_running(graph, robot_yaml):
    world = World(graph, robot_yaml())
    assert world.node.set_parameters([Parameter('executor.hold_s', value=1.0)])[0].successful
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 2))
    wait_until(lambda: len(world.commands) > 60)


def test_on_simulated_time_it_follows_the_clock_as_it_runs_pauses_and_jumps_back(graph, robot_yaml):
    simulated = graph.simulate_time(begin_ns=100 * SECOND, speed=0.5)
    world = World(graph, robot_yaml(), use_sim_time=True)
    commands, steady = world.commands, [[0.5, 0.5, 0.5]] * 40
    world.send(world.chunk(steady))
    wait_until(lambda: len(commands) > 20)
    arrivals = [at for at, _ in commands[5:]]
    assert 1.0 / np.median(np.diff(arrivals)) == pytest.approx(50.0, rel=0.15)
    simulated['running'] = False
    time.sleep(0.1)
    count = len(commands)
    time.sleep(0.2)
    assert len(commands) <= count + 1
    simulated.update(now=10 * SECOND, running=True)
    time.sleep(0.2)
    assert len(commands) <= count + 1
    world.send(world.chunk(steady))
    wait_until(lambda: len(commands) > count + 10)


def test_a_chunk_survives_the_message():
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32).astype(np.float64)
    chunk = Chunk('nano', NAMES, rows, 5 * SECOND + 7, 6 * SECOND + 8, 33_333_333, 2**32 - 1, 2**40)
    message = chunk_to_message(chunk, 6 * SECOND + 8 + 2 * 33_333_333)
    again = chunk_from_message(message)
    np.testing.assert_array_equal(again.actions, chunk.actions)
    assert (again.names, again.observed_ns, again.start_ns, again.step_ns) == (
        NAMES,
        5 * SECOND + 7,
        6 * SECOND + 8,
        33_333_333,
    )
    assert (again.epoch, again.sequence, message.delay) == (2**32 - 1, 2**40, 2)
