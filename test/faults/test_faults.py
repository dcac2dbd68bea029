"""Everything that may break on a robot, broken. See `campaign` for how it is judged."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flashrt_ros.msg import ActionChunk
from nodes.graph import wait_until
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import Trigger

from faults.campaign import HOLD_S, IN_NAMESPACE, MAX_VELOCITY, PERIOD_S, SECOND
from flashrt_ros.control import Chunk
from flashrt_ros.nodes.messages import chunk_to_message

pytestmark = [pytest.mark.ros, pytest.mark.faults, pytest.mark.timeout(180)]


def test_policy_killed(campaign):
    world = campaign()
    world.signal(world.policy, signal.SIGKILL)
    seconds = world.wait_for_stop()
    world.conclude(seconds, world.wait_for_message('no chunk came in time'))


def test_policy_stopped_and_continued(campaign):
    world = campaign()
    world.signal(world.policy, signal.SIGSTOP)
    seconds = world.wait_for_stop()
    seen = world.wait_for_message('no chunk came in time')
    world.signal(world.policy, signal.SIGCONT)
    world.wait_for_motion()
    world.conclude(seconds, seen)


def test_policy_killed_and_restarted_while_the_robot_moves(campaign):
    world = campaign()
    world.signal(world.policy, signal.SIGKILL)
    world.policy = world.start('policy_node')
    world.wait_for_motion(60.0)
    world.conclude(None, world.last_told() + ', then motion again')


def test_streamer_killed(campaign):
    """Nothing is sent any more: a controller that got a point stands there, as the last command said."""
    world = campaign()
    killed = time.monotonic()
    world.signal(world.streamer, signal.SIGKILL)
    world.pause(1.0)
    silence = world.commands[-1][0] - killed
    assert silence < 0.1
    reports = [at for at, array in world.diagnostics if any('streamer' in s.name for s in array.status)]
    assert max(reports) < killed + 0.1
    world.conclude(max(0.0, silence), 'commands end; its status is missing from /diagnostics')


def test_streamer_killed_and_restarted_while_the_robot_moves(campaign):
    world = campaign()
    world.signal(world.streamer, signal.SIGKILL)
    world.pause(0.2)
    stood = dict(world.robot.positions)
    count = len(world.commands)
    world.streamer = world.start('action_streamer')
    wait_until(lambda: len(world.commands) > count + 50, 30.0, 'commands again')
    first = np.array(world.commands[count][1].points[0].positions)
    assert np.abs(first - list(stood.values())).max() < 0.02
    world.conclude(None, 'motion again, from where the robot stood')


def test_streamer_stopped_and_continued(campaign):
    """Two seconds are missing from its life: it must not make up for them in one step."""
    world = campaign()
    world.signal(world.streamer, signal.SIGSTOP)
    world.pause(2.0)
    world.signal(world.streamer, signal.SIGCONT)
    world.wait_for_motion()
    assert 'starved' in world.last_told()
    world.conclude(None, world.last_told() + ', then motion again')


def test_streamer_ended_by_sigterm(campaign):
    world = campaign()
    count = len(world.commands)
    world.signal(world.streamer, signal.SIGTERM)
    assert world.streamer.wait(10) == 0
    world.pause(0.3)
    rows = world.rows()[count - 2 :]
    assert np.abs(rows[-1] - rows[-2]).max() < 1e-6
    assert 'SIGTERM' in world.streamer.output()
    world.conclude(None, 'brakes, holds, ends: ending: SIGTERM')


def test_camera_freezes(campaign):
    world = campaign()
    world.robot.mute.add('left_wrist_0_rgb')
    seconds = world.wait_for_stop()
    seen = world.wait_for_message('left_wrist_0_rgb: it is', '/policy_node')
    world.robot.mute.clear()
    world.wait_for_motion()
    world.conclude(seconds, seen)


def test_joint_states_freeze(campaign):
    world = campaign()
    world.robot.mute.add('state')
    seconds = world.wait_for_stop()
    seen = world.wait_for_message('state: it is', '/policy_node')
    world.robot.mute.clear()
    world.wait_for_motion()
    world.conclude(seconds, seen)


def test_camera_says_nonsense(campaign):
    """Frames whose size contradicts their data."""
    world = campaign()

    def spoil(message):
        message.height *= 2

    world.robot.change['base_0_rgb'] = spoil
    seconds = world.wait_for_stop()
    seen = world.wait_for_message('base_0_rgb: ', '/policy_node')
    world.robot.change.clear()
    world.wait_for_motion()
    world.conclude(seconds, seen)


def chunk_of(world, value, sequence, rows=40):
    now = world.graph.tester.get_clock().now().nanoseconds
    actions = np.full((rows, 3), value)
    return Chunk('test', ('a', 'b', 'c'), actions, now, now, 50_000_000, 2**31, sequence)


@pytest.fixture
def alone(campaign):
    """A streamer without a policy: the test sends the chunks."""

    def begin(**options):
        world = campaign(policy=False, **options)
        world.publisher = world.graph.tester.create_publisher(ActionChunk, 'action_chunk', 1)
        wait_until(world.publisher.get_subscription_count, 10.0)
        world.pause(0.3)
        world.publisher.publish(chunk_to_message(chunk_of(world, 0.3, 1, rows=10), 0))
        wait_until(lambda: len(world.commands) > 20, 10.0, 'commands')
        return world

    return begin


def test_actions_not_a_number(alone):
    world = alone()
    for sequence in range(2, 30):
        message = chunk_to_message(chunk_of(world, 0.3, sequence), 0)
        message.data[7] = float('nan')
        world.publisher.publish(message)
        world.pause(0.05)
    seconds = world.wait_for_stop()
    assert int(world.values()['chunks_malformed']) > 0
    assert np.isfinite(world.rows()).all()
    world.conclude(seconds, world.wait_for_message("row 2 of joint 'b' is nan"))


def test_a_jump_of_a_whole_radian_between_chunks(alone):
    world = alone()
    for sequence in range(2, 12):
        world.publisher.publish(chunk_to_message(chunk_of(world, 0.3 + (-1) ** sequence, sequence), 0))
        world.pause(0.2)
    assert int(world.values()['velocity_clamps']) > 0
    world.conclude(None, f'velocity_clamps: {world.values()["velocity_clamps"]}')


@pytest.mark.parametrize('what', ['chunks', 'joint states', 'images'])
def test_random_bytes(campaign, what):
    """Bytes that are no message at all, and messages cut short, beside the good ones."""
    world = campaign()
    topic, message_type = {
        'chunks': ('action_chunk', ActionChunk),
        'joint states': ('/joint_states', JointState),
        'images': ('/front', Image),
    }[what]
    publisher = world.graph.tester.create_publisher(message_type, topic, 1)
    wait_until(publisher.get_subscription_count, 10.0)
    random = np.random.default_rng(0)
    good = serialize_message(message_type())
    for length in [0, 1, 3, 4, 5, 8, 40, 200, 5000] * 3:
        publisher.publish(b'\0\1\0\0' + random.bytes(length))
        publisher.publish(good[: min(length, len(good) - 1)] or b'\0')
        world.pause(0.02)
    assert world.policy.poll() is None
    assert world.streamer.poll() is None
    world.wait_for_motion()
    log = (world.streamer if what == 'chunks' else world.policy).output().splitlines()
    told = [line for line in log if '[WARN]' in line or 'ERROR' in line.upper()]
    print(f'{what}: the log says', *told[-3:], sep='\n  ')
    world.conclude(None, 'motion goes on')


def test_inference_takes_ten_times_as_long_now_and_then(campaign):
    """The policy is frozen for most of a chunk's length, again and again: the chunk bridges it."""
    world = campaign()
    before = int(world.values().get('stops', 0))
    for _ in range(6):
        world.signal(world.policy, signal.SIGSTOP)
        world.pause(0.6)
        world.signal(world.policy, signal.SIGCONT)
        world.pause(0.5)
    values = world.values()
    assert int(values['stops']) == before
    world.conclude(None, f'underruns: {values["underruns"]}, motion goes on')


@pytest.mark.parametrize('jump_s', [-60, 60])
def test_clock_jumps(alone, graph, jump_s):
    """Simulated time jumps while a chunk is in execution."""
    simulated = graph.simulate_time(begin_ns=1000 * SECOND, speed=1.0)
    world = alone(sim_time=True)
    world.publisher.publish(chunk_to_message(chunk_of(world, 0.3, 2), 0))
    wait_until(lambda: world.followed[-1][1].sequence == 2, 10.0, 'the second chunk')
    simulated['now'] += jump_s * SECOND
    wait_until(lambda: world.followed[-1][1].horizon == 0, 10.0, 'the end of the motion')
    expected = 'no chunk came in time' if jump_s > 0 else 'waiting for a chunk'
    seen = world.wait_for_message(expected)
    # A report from before the jump may say the same; they come once a second.
    jumps = '1' if jump_s < 0 else '0'
    wait_until(lambda: world.values()['clock_jumps'] == jumps, 5.0, f'{jumps} clock jumps')
    count = len(world.commands)
    world.publisher.publish(chunk_to_message(chunk_of(world, 0.0, 3), 0))
    wait_until(lambda: len(world.commands) > count + 20, 10.0, 'commands after the jump')
    world.conclude(None, seen)


def test_link_between_policy_and_streamer_cut(campaign):
    """The policy is on the far side of a relay, as of a network: it goes on, and nothing of it arrives."""
    world = campaign(far_policy=True)
    world.relay.cut = True
    seconds = world.wait_for_stop()
    seen = world.wait_for_message('no chunk came in time')
    before = len(world.chunks)
    wait_until(lambda: len(world.chunks) > before + 3, 10.0, 'chunks on the far side')
    world.relay.cut = False
    world.wait_for_motion()
    world.conclude(seconds, seen)


def test_estop_in_full_motion(campaign):
    world = campaign()
    client = world.graph.client(Trigger, 'action_streamer/estop')
    asked = time.monotonic()
    assert world.graph.call(client, Trigger.Request()).success
    wait_until(lambda: world.followed[-1][1].horizon == 0)
    seconds = time.monotonic() - asked
    seen = world.wait_for_message('estopped')
    world.pause(1.0)
    rows = world.rows()
    assert np.ptp(rows[-20:], axis=0).max() < 1e-6
    assert seconds < HOLD_S + 2 * PERIOD_S
    world.conclude(seconds, seen)


def test_network_cut(report):
    """In a network namespace of its own, whose only interface goes down. Runs this file again inside it."""
    if os.environ.get(IN_NAMESPACE):
        pytest.skip('this is the inside')
    probe = subprocess.run(['unshare', '--user', '--net', '--map-root-user', 'true'], capture_output=True)
    if probe.returncode:
        pytest.skip('no network namespaces here: ' + probe.stderr.decode().strip())
    pytest_inside = f'{sys.executable} -m pytest -q -s -p no:cacheprovider {__file__} -k cut_inside'
    network = 'ip link set lo up multicast on && ip route add 224.0.0.0/4 dev lo'
    inside = f'{network} && exec {pytest_inside}'
    profile = str(Path(__file__).with_name('udp_only.xml'))
    environment = {**os.environ, IN_NAMESPACE: '1'}
    environment |= {'FASTDDS_DEFAULT_PROFILES_FILE': profile, 'FASTRTPS_DEFAULT_PROFILES_FILE': profile}
    run = subprocess.run(
        ['unshare', '--user', '--net', '--map-root-user', 'bash', '-c', inside],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stdout + run.stderr
    line = next(line for line in run.stdout.splitlines() if line.startswith('CUT '))
    if line == 'CUT impossible':
        pytest.skip('this kernel delivers over a loopback interface that is down')
    seconds, step = map(float, line.split()[1:])
    report.rows.append(('network cut', seconds, step, 'no chunk came in time (log of the streamer)'))


def test_cut_inside_a_namespace(campaign):
    if not os.environ.get(IN_NAMESPACE):
        pytest.skip('only in a network namespace; test_network_cut makes one')
    subprocess.run(['ip', 'link', 'set', 'lo', 'down'], check=True)
    if _loopback_carries():
        print('\nCUT impossible')
        return
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
    world = campaign()
    subprocess.run(['ip', 'link', 'set', 'lo', 'down'], check=True)
    wait_until(lambda: 'starved' in world.streamer.output(), 20.0, 'the safe action')
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
    wait_until(lambda: 'no motion: over (starved' in world.streamer.output(), 60.0, 'motion again')
    world.pause(0.5)
    seconds = _between(world.streamer.output(), 'holding the last command', 'no motion: starved')
    print(f'\nCUT {seconds:.4f} {world.largest_step():.4f}')
    assert world.largest_step() <= MAX_VELOCITY * PERIOD_S + 1e-6
    assert seconds <= HOLD_S + 2 * PERIOD_S + 1e-3
    # Fast DDS may take longer to leave a network that has come back than the fixture waits.
    for process in (world.policy, world.streamer):
        world.signal(process, signal.SIGKILL)


def _loopback_carries():
    """Whether a datagram to this host still arrives."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(('127.0.0.1', 0))
        receiver.settimeout(0.5)
        try:
            sender.sendto(b'?', receiver.getsockname())
            receiver.recv(1)
        except OSError:
            return False
    return True


def _between(log, first, second):
    """Seconds between the last two lines of a log that hold these words."""

    def stamp_of(words):
        line = next(line for line in reversed(log.splitlines()) if words in line and 'over (' not in line)
        return float(line.split('] [')[1])

    return stamp_of(second) - stamp_of(first)
