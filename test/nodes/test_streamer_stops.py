"""Stopping the streamer in a real graph: services, deadman, stop topic, last commands, output modes."""

import time

import numpy as np
import pytest
from flashrt_ros.msg import ActionChunk
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_system_default
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from flashrt_ros.control import chunk_from_message
from flashrt_ros.ingest.stream import stamp_ns
from flashrt_ros.nodes.action_streamer import ActionStreamer
from flashrt_ros.nodes.messages import chunk_to_message
from flashrt_ros.nodes.operator import LATCHED
from nodes.graph import wait_until
from nodes.test_action_streamer import NAMES, SECOND, World, positions

pytestmark = pytest.mark.ros

RISING = [[0.1 + 0.02 * row, 0.2, 0.3] for row in range(100)]
"""Moves the first joint at 0.4 per second for five seconds."""

URDF = """<robot name="testbot">
  <joint name="a" type="revolute"><limit lower="-1" upper="0.15" velocity="0.2" effort="1"/></joint>
  <joint name="b" type="continuous"/>
  <joint name="c" type="continuous"/>
</robot>"""


@pytest.fixture
def moving(graph, robot_yaml):
    """An active streamer that follows a rising chunk."""

    def start(changes=None, command_type=None, **parameters):
        types = () if command_type is None else (command_type,)
        world = World(graph, robot_yaml(changes), *types, **parameters)
        world.send(world.chunk(RISING))
        wait_until(lambda: len(world.commands) > 20, what='20 commands')
        return world

    return start


def call(world, what):
    client = world.graph.client(Trigger, f'action_streamer/{what}')
    answer = world.graph.call(client, Trigger.Request())
    return answer.success, answer.message


def settled(world):
    """Whether the last commands are all the same, with some more having come."""
    count = len(world.commands)
    wait_until(lambda: len(world.commands) > count + 10)
    return np.ptp([positions(message)[0] for _, message in world.commands[-8:]]) == 0.0


def test_hold_and_resume_are_services(moving):
    world = moving()
    assert call(world, 'hold') == (True, 'holding; call resume to go on')
    assert settled(world)
    world.send(world.chunk(RISING))
    wait_until(lambda: world.values().get('motion') == 'held')
    assert world.values()['stop reason'] == 'hold, by the operator'
    assert world.values()['message'] == 'held: hold, by the operator'
    assert settled(world)
    assert call(world, 'resume')[0]
    time.sleep(0.05)
    count = len(world.commands)
    world.send(world.chunk(RISING))
    wait_until(lambda: len(world.commands) > count + 20)
    assert not settled(world)


def test_after_an_estop_only_reset_and_resume_let_it_move(moving):
    world = moving({'executor.safe_action': 'zero_velocity'})
    begin = time.monotonic()
    assert call(world, 'estop')[0]
    stopped = wait_until(
        lambda: next((at for at, message in world.commands if message.points[0].velocities), None)
    )
    assert stopped - begin < 0.2
    assert list(world.commands[-1][1].points[0].velocities) == [0.0] * 3
    assert not call(world, 'resume')[0]
    assert world.graph.change(world.node, 'deactivate', 'activate')
    world.send(world.chunk(RISING))
    wait_until(lambda: world.values().get('motion') == 'estopped')
    assert call(world, 'reset')[0]
    assert call(world, 'resume')[0]
    time.sleep(0.05)
    count = len(world.commands)
    world.send(world.chunk(RISING))
    wait_until(lambda: len(world.commands) > count + 20)


def test_reset_drops_a_chunk_in_flight(moving):
    world = moving()
    in_flight = world.chunk(RISING)
    assert call(world, 'reset') == (True, 'motion forgotten, chunks in flight are dropped')
    world.send(in_flight)
    wait_until(lambda: 'from before the reset' in world.values().get('chunks_refused', ''))


def test_without_the_deadman_nothing_moves_and_when_it_falls_silent_it_holds(graph, robot_yaml):
    world = World(graph, robot_yaml({'safety': {'deadman_topic': '/deadman', 'deadman_timeout_s': 0.2}}))
    publisher = graph.tester.create_publisher(Bool, '/deadman', 1)
    wait_until(publisher.get_subscription_count)
    world.send(world.chunk(RISING))
    wait_until(lambda: 'the deadman has not been pressed yet' in world.values().get('message', ''))
    assert not world.commands
    pressing = graph.tester.create_timer(0.05, lambda: publisher.publish(Bool(data=True)))
    wait_until(lambda: world.values().get('motion') == 'enabled')
    world.send(world.chunk(RISING))
    wait_until(lambda: len(world.commands) > 20)
    pressing.cancel()
    wait_until(lambda: world.values().get('stop reason') == 'the deadman is silent')
    assert settled(world)


def test_the_stop_topic_says_whether_it_may_move_also_to_who_comes_later(moving):
    world = moving({'safety': {'stop_topic': '/stopped'}})
    seen = world.graph.watch(Bool, '/stopped', LATCHED)
    wait_until(lambda: [message.data for _, message in seen] == [False])
    call(world, 'estop')
    wait_until(lambda: [message.data for _, message in seen] == [False, True])


def test_deactivated_it_brakes_before_it_falls_silent(moving):
    joints = [{'name': 'a', 'max_acceleration': 1.0}, {'name': 'b'}, {'name': 'c'}]
    world = moving({'robot.joints': joints, 'executor.safe_action': 'hold'})
    before = len(world.commands)
    assert world.graph.change(world.node, 'deactivate')
    time.sleep(0.1)
    told = np.array([positions(message)[0] for _, message in world.commands[before - 5 :]])
    ways = np.diff(told)
    assert ways[-1] == 0.0
    assert 20 < len(told) < 100
    assert np.abs(np.diff(ways)).max() < 0.4 * 0.01  # never from full speed to none in one command


def test_frozen_time_does_not_keep_it_moving(graph, robot_yaml):
    """The ROS clock stops while a chunk is in execution: the wall clock ends the motion."""
    simulated = graph.simulate_time(begin_ns=100 * SECOND, speed=1.0)
    world = World(graph, robot_yaml({'safety': {'wall_s': 1.0}}), use_sim_time=True)
    world.send(world.chunk(RISING))
    wait_until(lambda: len(world.commands) > 20)
    simulated['running'] = False
    wait_until(lambda: 'by the wall clock' in world.values().get('stop reason', ''), timeout=5.0)
    assert world.values()['motion'] == 'starved'


def test_a_chunk_is_one_trajectory_with_velocities_on_the_grid(graph, robot_yaml):
    world = World(graph, robot_yaml({'output.mode': 'chunk'}))
    chunk = world.chunk(RISING)
    world.send(chunk)
    message = wait_until(lambda: world.commands and world.commands[0][1], what='a trajectory')
    points = np.array([point.positions for point in message.points])
    times = np.array([stamp_ns(point.time_from_start) for point in message.points])
    assert list(message.joint_names) == list(NAMES)
    np.testing.assert_array_equal(np.diff(times), 50_000_000)
    np.testing.assert_allclose(np.diff(points[:, 0]), 0.02, atol=1e-6)
    velocities = np.array([point.velocities for point in message.points])
    np.testing.assert_allclose(velocities[1:-1, 0], 0.4, atol=1e-5)
    assert velocities[-1].tolist() == [0.0] * 3
    assert points[-1, 0] == pytest.approx(RISING[-1][0], abs=1e-6)
    # The grid of the chunk begins when it was accepted; its second row is the first point.
    assert points[0, 0] == pytest.approx(RISING[1][0], abs=1e-6)
    time.sleep(0.3)
    assert len(world.commands) == 1
    call(world, 'hold')
    stop = wait_until(lambda: len(world.commands) > 1 and world.commands[-1][1])
    assert stop.points[-1].velocities.tolist() == [0.0] * 3
    assert 0.15 < stop.points[-1].positions[0] < 0.5


def test_an_estop_overrides_the_trajectory_that_the_controller_has(graph, robot_yaml):
    """Also where the safe action is silence: the controller would go on to the end of the chunk.

    It refuses what ends in its past, so a stop names no time; and it subscribes with the system's QoS, which
    may lose a message, so a stop is sent for a while: `control/joint_trajectory_controller.py`.
    """
    world = World(graph, robot_yaml({'output.mode': 'chunk', 'executor.safe_action': 'stop'}))
    heard = graph.watch(JointTrajectory, '/commands', qos_profile_system_default)
    world.send(world.chunk(RISING))
    wait_until(lambda: world.commands)
    time.sleep(0.5)
    call(world, 'estop')
    wait_until(lambda: len(world.commands) == 14, what='a chunk, and stops for 0.25 s, every 20 ms')
    stops = [message for _, message in world.commands[1:]]
    assert {stamp_ns(stop.header.stamp) for stop in stops} == {0}
    assert {len(stop.points) for stop in stops} == {1}
    assert {tuple(stop.points[0].velocities) for stop in stops} == {(0.0, 0.0, 0.0)}
    (at,) = {stop.points[0].positions[0] for stop in stops}
    assert 0.2 < at < 1.0
    assert heard[-1][1] == stops[-1]
    time.sleep(0.2)
    assert len(world.commands) == 14


def test_a_command_loop_that_fails_ends_in_an_emergency_stop(moving, monkeypatch):
    world = moving({'executor.safe_action': 'hold'})
    send, failing = world.node._worker._sender._output.send, [True]

    def fail_once(*arguments):
        if failing.pop() if failing else False:
            raise ZeroDivisionError('a fault in the loop')
        send(*arguments)

    monkeypatch.setattr(world.node._worker._sender._output, 'send', fail_once)
    wait_until(lambda: world.values().get('motion') == 'estopped', what='the emergency stop')
    assert 'the command loop has failed: ZeroDivisionError' in world.values()['stop reason']
    assert settled(world)


def test_limits_of_the_robot_description_hold(graph, robot_yaml):
    publisher = graph.tester.create_publisher(String, '/robot_description', LATCHED)
    publisher.publish(String(data=URDF))
    world = World(graph, robot_yaml({'robot.description_topic': '/robot_description'}))
    world.send(world.chunk(RISING))
    wait_until(lambda: len(world.commands) > 80)
    told = np.array([positions(message)[0] for _, message in world.commands])
    assert told.max() <= 0.15 + 1e-9
    assert np.diff(told).max() <= 0.2 * 0.01 + 1e-9
    wait_until(lambda: world.values().get('clamps by joint', '').startswith('a: '))


def test_without_the_description_it_does_not_configure(graph, robot_yaml, capfd, monkeypatch):
    monkeypatch.setattr('flashrt_ros.nodes.description.WAIT_S', 0.3)
    node = graph.start(ActionStreamer, robot_yaml({'robot.description_topic': '/nowhere'}))
    assert not graph.change(node, 'configure')
    assert '/nowhere: no description came within 0.3 s. Start robot_state_publisher' in capfd.readouterr().err


def test_offsets_on_the_wire_are_added_to_the_measured_position(graph, robot_yaml):
    world = World(graph, robot_yaml())
    message = chunk_to_message(world.chunk([[0.5, 0.5, 0.5]] * 20), 0)
    message.kinds = [ActionChunk.JOINT_DELTA, ActionChunk.JOINT_POSITION, ActionChunk.JOINT_DELTA]
    world._publisher.publish(message)
    told = positions(graph.messages_after(world.commands))
    assert told == pytest.approx([0.6, 0.5, 0.8])


def test_the_policy_is_told_what_is_followed(graph, robot_yaml):
    told = graph.watch(ActionChunk, 'executing_chunk')
    world = World(graph, robot_yaml())
    sent = world.chunk(RISING)
    world.send(sent)
    message = wait_until(lambda: next((m for _, m in told if m.horizon), None))
    followed = chunk_from_message(message)
    assert (followed.sequence, followed.epoch) == (sent.sequence, sent.epoch)
    assert 0 <= followed.start_ns - sent.start_ns < 0.1 * SECOND
    call(world, 'hold')
    wait_until(lambda: told[-1][1].horizon == 0)


def test_a_strategy_is_chosen_in_the_yaml(graph, robot_yaml):
    world = World(graph, robot_yaml({'executor.strategy': 'ensemble', 'executor.ensemble_decay': 0.0}))
    now = graph.tester.get_clock().now().nanoseconds
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 40, observed_ns=now))
    wait_until(lambda: world.commands)
    world.send(world.chunk([[0.3, 0.2, 0.3]] * 40, observed_ns=now))
    wait_until(lambda: world.commands and positions(world.commands[-1][1])[0] == pytest.approx(0.2, abs=1e-6))
    assert world.node.set_parameters([Parameter('executor.ensemble_decay', value=10.0)])[0].successful
    wait_until(lambda: positions(world.commands[-1][1])[0] == pytest.approx(0.1, abs=1e-4))
    (refused,) = world.node.set_parameters([Parameter('executor.strategy', value='sync')])
    assert not refused.successful


def test_zero_velocities_go_with_joint_states_too(graph, robot_yaml):
    changes = {'output.type': 'joint_state', 'executor.safe_action': 'zero_velocity'}
    world = World(graph, robot_yaml(changes), JointState)
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 3))
    wait_until(lambda: world.commands and world.commands[-1][1].velocity.tolist() == [0.0] * 3)
