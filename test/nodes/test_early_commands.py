"""Commands made ahead of their deadline: stops and chunks that come before it, the loop, what is sent."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rclpy.clock import Clock, ClockType
from rclpy.logging import get_logger
from rclpy.serialization import deserialize_message

from flashrt_ros.configuration import load_config
from flashrt_ros.control import Chunk, Limits
from flashrt_ros.control.motion import Command
from flashrt_ros.nodes.action_streamer import early_of
from flashrt_ros.nodes.command_frames import frame_maker
from flashrt_ros.nodes.command_worker import CommandWorker
from flashrt_ros.nodes.commands import MESSAGE_TYPES, command_maker
from flashrt_ros.nodes.loop import Early, FixedRateLoop
from flashrt_ros.nodes.messages import chunk_to_message
from flashrt_ros.nodes.output import StepOutput
from nodes.graph import wait_for_match, wait_until
from nodes.test_action_streamer import World, positions

pytestmark = pytest.mark.ros

MS = 1_000_000
NOW = 1_700_000_000_000_000_000
NAMES = ('a', 'b', 'c')
PERIOD = 10 * MS
"""At 100 commands a second."""


class Robot:
    """A worker that moves joint a at 0.4 per second, the ROS clock that the test sets, and what is sent."""

    def __init__(self, robot_yaml, **changes):
        config = load_config(robot_yaml({'executor': {'ramp_s': 0.0, 'max_chunk_age_s': 10.0}, **changes}))
        self.now, self.sequence, self.sent = NOW, 0, []
        clock = SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self.now), ros_time_is_active=False)
        make = command_maker(config.output.type, NAMES, PERIOD)
        self.worker = CommandWorker(
            config,
            Limits.of(config),
            clock,
            get_logger('early'),
            StepOutput(frame_maker(make, len(NAMES)), self.sent.append),
            lambda message: None,
            lambda stopped: None,
        )
        self.worker._measured = lambda now_ns: np.zeros(3)
        self.worker.begin()

    def send_chunk(self, first=0.0):
        self.sequence += 1
        rows = [[first + 0.02 * row, 0.0, 0.0] for row in range(100)]
        chunk = Chunk('test', NAMES, np.array(rows), self.now, self.now, 50 * MS, 1, self.sequence)
        self.worker.take_chunk(chunk_to_message(chunk, self.now))

    def prepare(self):
        """The command of the next deadline, a quarter of a period before it."""
        self.worker.prepare(self.now + PERIOD // 4, time.monotonic_ns() + PERIOD // 4)

    def tick(self):
        """At the deadline."""
        self.now += PERIOD // 4
        self.worker.tick(self.now)
        self.now += PERIOD - PERIOD // 4

    def told(self):
        """Where joint a was sent, by every command so far."""
        messages = [deserialize_message(frame, MESSAGE_TYPES['joint_trajectory']) for frame in self.sent]
        return [message.points[0].positions[0] for message in messages]


@pytest.fixture
def moving(robot_yaml):
    def start(**changes):
        robot = Robot(robot_yaml, **changes)
        robot.send_chunk()
        for _ in range(20):
            robot.prepare()
            robot.tick()
        return robot

    return start


def test_what_was_made_ahead_is_sent_once_and_only_at_the_tick(moving):
    robot = moving()
    assert len(robot.sent) == 20
    np.testing.assert_allclose(np.diff(robot.told()), 0.004, atol=1e-9)
    robot.prepare()
    robot.prepare()
    assert len(robot.sent) == 20
    robot.tick()
    robot.tick()
    np.testing.assert_allclose(np.diff(robot.told()), 0.004, atol=1e-9)
    assert robot.worker.report()['commands'] == 22


@pytest.mark.parametrize('act', ['hold', 'estop'])
@pytest.mark.parametrize('safe_action', ['hold', 'stop'])
def test_after_the_answer_to_a_stop_no_motion_is_sent_though_a_command_was_ready(moving, act, safe_action):
    robot = moving(**{'executor.safe_action': safe_action})
    robot.prepare()
    before = robot.told()[-1]
    assert robot.worker.act(act)[0]
    count = len(robot.sent)
    for _ in range(5):
        robot.tick()
        robot.prepare()
    assert set(robot.told()[20:]) <= {before}  # without limited acceleration it stands where it was sent last
    assert len(robot.sent) == (20 if (act, safe_action) == ('estop', 'stop') else count + 5)


def test_after_a_reset_no_motion_is_sent_though_a_command_was_ready(moving):
    robot = moving()
    robot.prepare()
    robot.worker.act('reset')
    robot.tick()
    assert len(robot.sent) == 20


def test_a_released_deadman_stops_a_command_that_was_ready(robot_yaml):
    robot = Robot(robot_yaml, safety={'deadman_topic': '/deadman', 'deadman_timeout_s': 30.0})
    robot.worker.deadman(True)
    robot.send_chunk()
    for _ in range(3):
        robot.prepare()
        robot.tick()
    robot.prepare()
    robot.worker.deadman(False)
    robot.tick()
    assert robot.told() == pytest.approx([0.001, 0.005, 0.009, 0.009, 0.009], abs=1e-9)


def test_deactivated_it_comes_to_rest_from_what_was_sent_not_from_what_was_ready(moving):
    robot = moving(**{'executor.safe_action': 'hold'})
    robot.prepare()
    robot.worker.come_to_rest('deactivated')
    assert set(robot.told()[20:]) == {robot.told()[19]}


def test_a_chunk_that_comes_before_the_deadline_is_followed_at_once(moving):
    robot = moving()
    robot.prepare()
    robot.send_chunk(first=0.5)
    robot.tick()
    assert robot.told()[-1] > 0.4
    assert robot.worker.report()['chunks_accepted'] == 2


def test_what_does_not_hold_any_more_is_made_anew_just_before_the_deadline(moving):
    robot = moving()
    due = time.monotonic_ns() + PERIOD // 4
    robot.worker.prepare(robot.now + PERIOD // 4, due)
    first = robot.worker._sender._ready
    robot.worker.prepare(robot.now + PERIOD // 4, due)
    assert robot.worker._sender._ready is first
    robot.send_chunk(first=0.5)
    robot.worker.prepare(robot.now + PERIOD // 4, due)
    ready = robot.worker._sender._ready
    robot.tick()
    assert robot.sent[-1] is ready.message
    assert robot.told()[-1] > 0.4


def test_a_stop_at_any_moment_of_a_running_loop_ends_motion_before_it_is_answered(robot_yaml):
    """500 ticks a second in a thread, each made ahead; an estop in this one, thirty times, at random."""
    rng, robot = np.random.default_rng(0), Robot(robot_yaml, **{'executor.safe_action': 'hold'})
    clock = Clock(clock_type=ClockType.ROS_TIME)
    robot.worker._clock = clock
    loop = FixedRateLoop(
        'commands', 500.0, robot.worker.tick, get_logger('early'), early=Early(robot.worker.prepare, MS // 2)
    )
    loop.start(clock)
    for _ in range(30):
        robot.now = clock.now().nanoseconds
        robot.send_chunk()
        begun = len(robot.sent)
        deadline = time.monotonic() + 10.0
        while len(robot.sent) < begun + 20 and time.monotonic() < deadline:
            time.sleep(1e-3)
        time.sleep(rng.uniform(0.0, 2e-3))
        robot.worker.act('estop')
        answered = len(robot.sent)
        time.sleep(6e-3)
        told = robot.told()[begun:]
        stopped = told[answered - begun - 1 :]
        assert len(set(told[: answered - begun])) > 10
        assert len(stopped) > 1
        assert set(stopped) == {stopped[0]}
        robot.worker.act('reset')
        robot.worker.act('resume')
    loop.stop()
    assert not loop.failure


def recorded_loop(clock, lead_ns, seconds=0.3, begin=lambda: None):
    """What a loop at 100 Hz calls, and when."""
    calls, ticked = [], threading.Event()

    def tick(now_ns):
        calls.append(('tick', time.monotonic_ns(), now_ns, None))
        if len(calls) > 20:
            ticked.set()

    def prepare(ros_ns, due_ns):
        calls.append(('prepare', time.monotonic_ns(), ros_ns, due_ns))

    loop = FixedRateLoop('commands', 100.0, tick, get_logger('early'), early=Early(prepare, lead_ns))
    loop.start(clock)
    begin()
    ticked.wait(10.0)
    loop.stop()
    return calls, loop


def test_a_loop_prepares_before_every_deadline_and_never_ticks_before_it():
    calls, _ = recorded_loop(Clock(clock_type=ClockType.ROS_TIME), lead_ns=2 * MS)
    first, early = {}, []
    for kind, at, ros_ns, due_ns in calls:
        if kind == 'prepare':
            first.setdefault(due_ns, (at, ros_ns))
        if kind == 'prepare' or not first:  # the first tick is due at once
            continue
        due_ns, (prepared_at, prepared_ros_ns) = max(first.items())
        assert at >= due_ns
        assert abs((ros_ns - prepared_ros_ns) - (at - due_ns)) < MS  # the same moment on both clocks
        early.append(due_ns - prepared_at)
    assert len(early) > 4
    assert max(early) <= 2 * MS
    assert np.median(early) > MS


class SetClock:
    """A `LoopClock` on which nothing takes time but waiting and `work`."""

    simulated = False

    def __init__(self):
        self.ns = 1_000 * MS

    def now_ns(self):
        return self.ns

    ros_now_ns = now_ns

    def ros_at(self, steady_ns):
        return steady_ns

    def rest_until(self, steady_ns):
        self.ns = max(self.ns, steady_ns)

    spin_until = rest_until

    def wait_until(self, deadline_ns, stop):
        self.rest_until(deadline_ns)
        return not stop.is_set()


@pytest.mark.parametrize(('work_us', 'late_us'), [(0, 0), (25, 0), (40, 0), (45, 5), (5000, 4960)])
def test_work_begins_so_that_it_is_usually_done_at_the_deadline(work_us, late_us):
    clock, done, due = SetClock(), [], []

    def tick(now_ns):
        clock.ns += work_us * 1000 * (50 if len(done) == 30 else 1)  # and one slow time does not change that
        done.append(clock.ns)
        if len(done) == 60:
            loop._stop.set()
        return clock.ns

    def prepare(ros_ns, due_ns):
        due[len(done) :] = [due_ns]

    loop = FixedRateLoop('commands', 100.0, tick, get_logger('early'), early=Early(prepare, 2 * MS))
    due.append(clock.ns)
    loop._run(clock)
    late = [(at - due_ns) // 1000 for at, due_ns in zip(done, due, strict=True)]
    assert late[0] == work_us  # of the first nothing is known
    assert set(late[1:30] + late[40:]) == {late_us}
    assert loop.skipped == (23 if work_us == 5000 else 0)


def test_another_thread_prepares_what_is_next_while_the_loop_sleeps():
    calls, began = [], threading.Event()

    def prepare(ros_ns, due_ns):
        calls.append((threading.current_thread().name, due_ns))

    def tick(ros_ns):
        calls.append(('tick', time.monotonic_ns()))
        began.set()

    loop = FixedRateLoop('loop', 2.0, tick, get_logger('early'), early=Early(prepare, MS))
    loop.make_ready()
    assert calls == []  # nothing is awaited yet
    loop.start(Clock(clock_type=ClockType.ROS_TIME))
    try:
        assert began.wait(10.0)
        time.sleep(0.05)
        asked_ns = time.monotonic_ns()
        loop.make_ready()
    finally:
        loop.stop()
    mine = [due_ns for name, due_ns in calls if name == threading.current_thread().name]
    assert len(mine) == 1
    assert 0 < mine[0] - asked_ns < 500 * MS  # the next tick's
    made = len(calls)
    loop.make_ready()
    assert len(calls) == made


def test_on_simulated_time_nothing_is_made_ahead(graph):
    graph.simulate_time(begin_ns=100_000 * MS, speed=1.0)
    node = graph.tester
    clock = node.get_clock()
    if not clock.ros_time_is_active:
        clock._set_ros_time_is_active(True)
    calls, loop = recorded_loop(clock, lead_ns=2 * MS)
    assert {call[0] for call in calls} == {'tick'}
    assert not loop.failure


def test_a_loop_says_how_late_its_work_was_done():
    loop = FixedRateLoop('commands', 100.0, lambda now_ns: time.monotonic_ns() + 3 * MS, get_logger('early'))
    loop.start(Clock(clock_type=ClockType.ROS_TIME))
    time.sleep(0.2)
    loop.stop()
    assert loop.meter.pace().late_p50_s >= 0.003


@pytest.mark.parametrize('joints', [1, 2, 3, 7, 14])
@pytest.mark.parametrize('zero_velocity', [False, True])
@pytest.mark.parametrize('output', MESSAGE_TYPES)
def test_a_command_in_bytes_is_the_message(output, zero_velocity, joints, monkeypatch):
    make = command_maker(output, names_of(joints), PERIOD)
    frame = frame_maker(make, joints)
    serialized = []
    monkeypatch.setattr('flashrt_ros.nodes.command_frames.serialize_message', serialized.append)
    rng = np.random.default_rng(joints)
    for now_ns in (0, 1, NOW, NOW + 999_999_999, 2**31 * 1_000_000_000 - 1):
        command = Command(rng.normal(size=joints), zero_velocity)
        assert deserialize_message(frame(command, now_ns), MESSAGE_TYPES[output]) == make(command, now_ns)
    assert not serialized


@pytest.mark.parametrize('joints', [1, 7])
@pytest.mark.parametrize('zero_velocity', [False, True])
@pytest.mark.parametrize('output', MESSAGE_TYPES)
def test_on_the_wire_its_bytes_are_as_many_as_those_of_the_message(graph, output, zero_velocity, joints):
    """Strict readers, of bags for instance, refuse any more."""
    heard = []
    kind, node = MESSAGE_TYPES[output], graph.tester
    subscription = node.create_subscription(kind, '/wire', heard.append, 10, raw=True)
    publisher = node.create_publisher(kind, '/wire', 10)
    wait_for_match(publisher, subscription)
    make = command_maker(output, names_of(joints), PERIOD)
    command = Command(np.arange(joints) + 0.5, zero_velocity)
    for message in (make(command, NOW), frame_maker(make, joints)(command, NOW)):
        publisher.publish(message)
    wait_until(lambda: len(heard) == 2)
    assert len(heard[0]) == len(heard[1])
    assert deserialize_message(heard[0], kind) == deserialize_message(heard[1], kind)


def names_of(joints):
    return [f'joint_{"x" * number}' for number in range(joints)]


def test_where_numbers_do_not_lie_in_the_message_as_they_are_it_stays_a_message():
    plain = command_maker('float64_multi_array', NAMES, PERIOD)

    def make(command, now_ns):
        message = plain(command, now_ns)
        message.data = [2.0 * value for value in message.data]
        return message

    assert frame_maker(make, 3) is make


@pytest.mark.parametrize(
    ('changes', 'lead_ns'),
    [
        ({}, MS // 2),
        ({'scheduling': {'streamer_lead_s': 0.002}}, 2 * MS),
        ({'scheduling': {'streamer_lead_s': 0.01}}, PERIOD // 4),
        ({'scheduling': {'streamer_lead_s': 0.0}}, None),
        ({'output.mode': 'chunk'}, None),
    ],
)
def test_how_early_is_a_setting_and_at_most_a_quarter_of_the_period(robot_yaml, changes, lead_ns):
    early = early_of(load_config(robot_yaml(changes)), prepare := object())
    assert (early and early.lead_ns) == lead_ns
    assert early is None or early.prepare is prepare


def test_without_a_lead_commands_are_made_when_they_are_due(graph, robot_yaml):
    world = World(graph, robot_yaml({'scheduling': {'streamer_lead_s': 0.0}}))
    prepared = []
    world.node._worker._sender.prepare = lambda *moment: prepared.append(moment)
    world.send(world.chunk([[0.1, 0.2, 0.3]] * 20))
    wait_until(lambda: len(world.commands) > 20)
    assert not prepared
    assert positions(world.commands[-1][1]) == pytest.approx([0.1, 0.2, 0.3])
