"""Every way to stop and to go on, on two clocks that the test moves."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrt_ros.configuration import load_config, with_values
from flashrt_ros.control import Chunk, ExecutorSettings, Limits, Phase
from flashrt_ros.control.motion import Motion
from flashrt_ros.control.supervisor import SafetySettings

MS = 1_000_000
PERIOD = 20 * MS
NOW = 1_700_000_000_000_000_000
WALL = 5_000_000_000
CONFIG = load_config(Path(__file__).parents[2] / 'config' / 'so101.yaml')


class World:
    """A robot of one joint that does what it is told, and chunks that move it at 1 per second."""

    def __init__(self, acceleration=np.inf, hold_ms=100, safe_action='hold', **safety):
        self.safe_action = safe_action
        executor = ExecutorSettings(
            True, 0, hold_ms * MS, 1000 * MS, safe_action=safe_action, damp_ns=100 * MS
        )
        free = np.array([np.inf])
        limits = Limits(-free, free, free, free, np.array([acceleration]), free, 0.02)
        settings = SafetySettings(safe_action=safe_action, hold_ns=hold_ms * MS, **safety)
        self.motion = Motion(executor, settings, limits)
        self.ros, self.wall, self.sequence, self.at = NOW, WALL, 0, 0.0
        self.commands = []

    def send(self, rows=10, observed=None):
        """A chunk that goes on from where the robot is; a row is 100 ms."""
        observed = self.ros if observed is None else observed
        values = self.at + 0.1 * np.arange(rows)[:, None]
        self.sequence += 1
        chunk = Chunk('nano', ('a',), values, observed, observed, 100 * MS, 1, self.sequence)
        return self.motion.accept(chunk, self.ros, self.wall, np.array([self.at]))

    def run(self, ms, ros_speed=1.0, press=False):
        """Commands of the next `ms`, None where nothing is sent."""
        told = []
        for _ in range(ms // 20):
            if press:
                self.motion.deadman(True, self.wall)
            command = self.motion.tick(self.ros, self.wall)
            self.commands.append(command)
            told.append(None if command is None else float(command.positions[0]))
            self.at = self.at if command is None else told[-1]
            self.ros += int(PERIOD * ros_speed)
            self.wall += PERIOD
        return told

    @property
    def state(self):
        return self.motion.supervisor.state

    @property
    def reason(self):
        return self.motion.supervisor.reason


def moving(**settings):
    world = World(**settings)
    assert world.send(50) == ''
    world.run(300)
    return world


def test_it_moves_while_nothing_stops_it():
    world = moving()
    assert world.at == pytest.approx(0.28)
    assert (world.state, world.reason, world.motion.trouble) == ('enabled', '', '')


def test_only_a_start_needs_to_know_where_the_robot_is():
    """Where nothing is asked for a chunk is accepted without; where it is, one without is refused."""
    world = World()
    assert world.motion.starts_from_measured(world.ros)
    world = moving()
    assert not world.motion.starts_from_measured(world.ros)
    chunk = Chunk('nano', ('a',), np.full((5, 1), world.at), world.ros, world.ros, 100 * MS, 1, 99)
    assert world.motion.accept(chunk, world.ros, world.wall, None) == ''
    assert world.motion.starts_from_measured(world.ros - 3600 * 1000 * MS)  # time begins anew
    world.run(3000)  # no more chunks: stopped for want of them
    assert world.motion.supervisor.awaits_chunk
    assert world.motion.starts_from_measured(world.ros)


class TestHold:
    def test_hold_stops_and_keeps_the_pose_until_resume(self):
        world = moving(safe_action='stop')
        assert world.motion.hold() == (True, 'holding; call resume to go on')
        told = world.run(400)
        assert told == [told[0]] * 20
        assert world.state == 'held'
        assert world.motion.trouble == 'held: hold, by the operator'
        assert world.motion.following is None
        assert world.send() == 'stopped'
        assert world.motion.resume(world.wall) == (True, 'resumed; the next chunk starts from standstill')
        assert world.run(40) == [None, None]
        assert world.send() == ''
        assert world.run(100)[-1] > told[0]

    def test_chunks_observed_before_the_resume_are_dropped(self):
        world = moving()
        world.motion.hold()
        world.run(40)
        in_flight = world.ros
        world.run(40)
        world.motion.resume(world.wall)
        world.run(20)
        assert world.send(observed=in_flight) == 'from before the reset'

    def test_it_brakes_within_the_limits(self):
        world = moving(acceleration=5.0)
        before, speed = world.at, world.motion.executor._speed[0]
        world.motion.hold()
        ways = np.diff(world.run(600), prepend=before) / 0.02
        assert np.abs(np.diff(ways, prepend=speed)).max() <= 5.0 * 0.02 + 1e-6
        assert ways[-1] == 0.0

    def test_nothing_to_resume_is_no_error(self):
        assert World().motion.resume(WALL) == (True, 'nothing was stopped')

    def test_a_second_hold_says_so(self):
        world = moving()
        world.motion.hold()
        assert world.motion.hold() == (True, 'stopped already: hold, by the operator')


class TestEstop:
    @pytest.mark.parametrize('action', ['stop', 'hold', 'damp', 'zero_velocity'])
    def test_it_takes_the_safe_action_at_once(self, action):
        world = moving(safe_action=action)
        world.motion.estop()
        told = world.run(400)
        assert (told[-1] is None) == (action == 'stop')
        if action == 'damp':
            assert told[-1] == pytest.approx(world.at)
            assert 0.02 < told[-1] - told[0] < 0.06
        if action == 'zero_velocity':
            assert world.commands[-1].zero_velocity
        else:
            assert not any(command.zero_velocity for command in world.commands if command)

    def test_nothing_moves_until_a_person_resets_and_resumes(self):
        world = moving()
        world.motion.estop('the big red button')
        told = world.run(100)
        assert world.send() == 'stopped'
        refused, why = world.motion.resume(world.wall)
        assert not refused
        assert why == 'not resumed: the big red button; call reset first'
        assert world.motion.hold()[0]
        assert world.motion.reset(world.ros) == (
            True,
            'the emergency stop is reset; call resume to move again',
        )
        assert world.state == 'reset'
        assert world.send() == 'stopped'
        assert world.run(100) == [told[-1]] * 5
        assert world.motion.resume(world.wall)[0]
        world.run(20)
        assert world.send() == ''

    def test_it_survives_deactivation(self):
        world = moving()
        world.motion.estop()
        world.motion.begin()
        assert world.state == 'estopped'
        world.run(20)
        assert world.send() == 'stopped'

    def test_pressing_it_while_held_is_graver_and_the_first_reason_stays(self):
        world = moving()
        world.motion.hold()
        world.motion.estop()
        assert (world.state, world.reason) == ('estopped', 'hold, by the operator')
        world.motion.hold()
        assert world.state == 'estopped'


class TestReset:
    def test_it_drops_motion_and_chunks_in_flight(self):
        world = moving()
        assert world.motion.reset(world.ros) == (True, 'motion forgotten, chunks in flight are dropped')
        assert world.run(40) == [None, None]
        assert world.send(observed=world.ros - 60 * MS) == 'from before the reset'
        assert world.send() == ''


class TestDeadman:
    def test_before_it_is_pressed_nothing_moves(self):
        world = World(deadman=True)
        assert world.reason == 'the deadman has not been pressed yet'
        assert world.send() == 'stopped'
        assert world.run(40) == [None, None]
        world.run(20, press=True)
        assert world.send() == ''
        assert world.run(100, press=True)[-1] > 0.0

    @pytest.mark.parametrize('how', ['released', 'silent'])
    def test_without_it_the_robot_holds_and_goes_on_when_it_is_pressed_again(self, how):
        world = World(deadman=True)
        world.run(20, press=True)
        world.send(50)
        world.run(300, press=True)
        if how == 'released':
            world.motion.deadman(False, world.wall)
            told = world.run(100)
            assert told == [told[0]] * 5
        else:
            told = world.run(600)
            assert told[-15:] == [told[-1]] * 15
            assert told[5] > told[0]
        assert world.reason == f'the deadman is {how}'
        assert world.motion.resume(world.wall) == (False, 'not resumed: the deadman is not pressed')
        world.run(20, press=True)
        assert world.state == 'enabled'
        assert world.send() == ''

    def test_pressed_again_it_does_not_end_another_stop(self):
        world = World(deadman=True)
        world.run(20, press=True)
        world.motion.hold()
        world.run(20, press=True)
        assert world.state == 'held'


class TestStarved:
    @pytest.mark.parametrize('action', ['hold', 'stop'])
    def test_late_it_holds_then_takes_the_safe_action_within_two_periods(self, action):
        world = World(safe_action=action, hold_ms=200)
        world.send(5)
        told = world.run(500)
        assert world.motion.phase is Phase.RUNNING
        assert told[-1] > told[0]
        told = world.run(200)
        assert told == [told[0]] * 10
        assert world.motion.trouble == 'the last chunk is over, holding the last command'
        told = world.run(40)
        assert world.state == 'starved'
        assert world.reason == 'no chunk came in time, safe action taken'
        assert (told[-1] is None) == (action == 'stop')

    def test_it_is_counted_whoever_notices_first(self):
        """The watchdog looks between two ticks."""
        world = World(hold_ms=40)
        world.send(2)
        world.run(220)
        world.ros += 40 * MS
        world.wall += 40 * MS
        assert world.motion.watch(world.ros, world.wall)
        world.run(20)
        assert world.reason == 'no chunk came in time, safe action taken'
        counts = world.motion.executor.counts
        assert (counts.underruns, counts.stops) == (1, 1)

    def test_the_next_chunk_ends_it(self):
        world = World(hold_ms=40)
        world.send(2)
        world.run(400)
        assert world.state == 'starved'
        assert world.send() == ''
        assert world.state == 'enabled'
        stood = world.at
        assert world.run(100)[-1] > stood

    def test_or_an_operator_does(self):
        world = World(hold_ms=40, restart_by_operator=True)
        world.send(2)
        world.run(400)
        assert world.send() == 'stopped'
        assert world.motion.resume(world.wall)[0]
        world.run(20)
        assert world.send() == ''

    def test_ros_time_that_stands_still_does_not_keep_it_moving(self):
        world = World(hold_ms=100)
        world.send(5)
        world.run(600, ros_speed=0.0)
        assert world.state == 'enabled'
        world.run(60, ros_speed=0.0)
        assert world.state == 'starved'
        assert 'by the wall clock' in world.reason

    def test_simulated_time_may_stand_still_unless_a_limit_is_set(self):
        world = World(hold_ms=100, follow_length=False)
        world.send(5)
        world.run(5000, ros_speed=0.0)
        assert world.state == 'enabled'
        strict = World(hold_ms=100, follow_length=False, wall_ns=1000 * MS)
        strict.send(5)
        strict.run(1040, ros_speed=0.0)
        assert strict.state == 'starved'

    def test_a_set_limit_holds_though_the_chunk_is_longer(self):
        world = World(wall_ns=300 * MS)
        world.send(50)
        world.run(340)
        assert world.state == 'starved'


class TestEnd:
    def test_deactivating_brakes_and_nothing_resumes_it(self):
        world = moving(acceleration=5.0)
        world.motion.end('SIGTERM')
        told = world.run(400)
        assert told[-1] == told[-2]
        assert world.reason == 'SIGTERM'
        assert world.motion.resume(world.wall) == (False, 'not resumed: the node is not active')
        assert world.motion.hold()[0] is False
        world.motion.begin()
        assert world.send() == ''

    def test_it_does_not_hide_the_first_reason(self):
        world = moving()
        world.motion.hold()
        world.motion.end('SIGTERM')
        assert world.reason == 'hold, by the operator'


def test_stops_are_counted_by_kind():
    world = World(hold_ms=40)
    for _ in range(2):
        world.send(2)
        world.run(400)
    world.motion.hold()
    world.run(20)
    assert world.motion.supervisor.stops == {'starved': 2, 'held': 1}


def test_settings_come_from_the_configuration_and_change_while_running():
    config = with_values(
        CONFIG,
        {'safety.deadman_topic': '/deadman', 'safety.wall_s': 2.0, 'safety.restart': 'operator'},
    )
    settings = SafetySettings.of(config, simulated_time=False)
    assert (settings.deadman, settings.wall_ns, settings.restart_by_operator) == (True, 2000 * MS, True)
    assert settings.follow_length
    assert not SafetySettings.of(CONFIG, simulated_time=True).follow_length
    world = moving(hold_ms=1000)
    world.motion.configure(
        ExecutorSettings(True, 0, 0, 1000 * MS, safe_action='hold'), SafetySettings(safe_action='hold')
    )
    assert world.motion.supervisor.settings.hold_ns == 0


@given(
    st.lists(
        st.sampled_from(
            ['hold', 'resume', 'estop', 'reset', 'press', 'release', 'chunk', 'wait', 'end', 'begin']
        ),
        max_size=25,
    ),
    st.booleans(),
)
def test_whatever_happens_an_estop_ends_only_by_reset_and_resume(acts, deadman):
    """And no command ever moves the joint faster than its limits."""
    world = World(acceleration=4.0, hold_ms=60, deadman=deadman)
    for act in acts:
        before = world.state
        {
            'hold': world.motion.hold,
            'resume': lambda: world.motion.resume(world.wall),
            'estop': world.motion.estop,
            'reset': lambda: world.motion.reset(world.ros),
            'press': lambda: world.motion.deadman(True, world.wall),
            'release': lambda: world.motion.deadman(False, world.wall),
            'chunk': lambda: world.send(5),
            'wait': lambda: None,
            'end': lambda: world.motion.end('end'),
            'begin': world.motion.begin,
        }[act]()
        if before == 'estopped' and act != 'reset':
            assert world.state == 'estopped'
        if before == 'reset' and act not in ('resume', 'estop'):
            assert world.state == 'reset'
        start = world.at
        told = [value for value in world.run(100) if value is not None]
        if world.state == 'estopped' and told:
            ways = np.abs(np.diff(told, prepend=start))
            assert (np.diff(ways) <= 1e-9).all()


@pytest.mark.parametrize('why', ['no measured position', 'too old'])
def test_a_refused_chunk_does_not_end_the_stop_nor_its_safe_action(why):
    world = World()
    assert world.send(5) == ''
    world.run(900)
    assert world.state == 'starved'
    values, observed = np.array([[world.at]] * 5), world.ros - (2000 * MS if why == 'too old' else 0)
    chunk = Chunk('nano', ('a',), values, observed, observed, 100 * MS, 1, 7)
    measured = None if why == 'no measured position' else np.array([world.at])
    before = world.motion.executor.counts.chunks_refused.copy()
    assert why in world.motion.accept(chunk, world.ros, world.wall, measured)
    assert sum(world.motion.executor.counts.chunks_refused.values()) == sum(before.values()) + 1
    assert world.state == 'starved'
    assert world.motion.trouble.startswith('starved: no chunk came in time')
    assert None not in world.run(200)  # the safe action holds the last command
    assert world.send(50) == ''
    assert world.state == 'enabled'
    assert world.run(200)[-1] > 0
