"""From chunks to commands: ramp, hold, safe action and limits, on a clock that the test moves."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrt_ros.configuration import load_config
from flashrt_ros.control import Chunk, Combine, Executor, ExecutorSettings, Limits, Phase

MS = 1_000_000
PERIOD = 20 * MS
NOW = 1_700_000_000_000_000_000
FREE = Limits.none(1, 0.02)
HERE = np.array([0.0])


def bounded(low=-np.inf, high=np.inf, step=np.inf, velocity=np.inf, acceleration=np.inf, jump=np.inf):
    return Limits(*(np.array([limit]) for limit in (low, high, step, velocity, acceleration, jump)), 0.02)


def settings(ramp=0, hold=100, safe_action='stop', **others):
    return ExecutorSettings(
        interpolate=True,
        ramp_ns=ramp * MS,
        hold_ns=hold * MS,
        max_age_ns=1000 * MS,
        safe_action=safe_action,
        **others,
    )


def chunk(values, start=NOW, sequence=0, step=100 * MS):
    actions = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    return Chunk('nano', ('a',), actions, start, start, step, 1, sequence)


def commands(executor, begin, end):
    """Commands of every control period in [begin, end), as floats or None."""
    answers = (executor.command(now) for now in range(begin, end, PERIOD))
    return [None if answer is None else float(answer[0]) for answer in answers]


def test_no_command_before_the_first_chunk():
    assert Executor(settings(), FREE).command(NOW) is None


def test_commands_follow_the_chunk_then_hold_then_stop():
    executor = Executor(settings(hold=100), FREE)
    assert executor.accept(chunk([1.0, 2.0]), NOW, HERE) == ''
    told = commands(executor, NOW, NOW + 400 * MS)
    assert told[:5] == pytest.approx([1.0, 1.2, 1.4, 1.6, 1.8])
    assert told[5:15] == [2.0] * 10
    assert told[15:] == [None] * 5
    assert executor.phase is Phase.STOPPED
    counts = executor.counts
    assert (counts.underruns, counts.stops, counts.commands) == (1, 1, 15)


def test_holding_on_is_a_safe_action_too():
    executor = Executor(settings(hold=40, safe_action='hold'), FREE)
    executor.accept(chunk([3.0]), NOW, HERE)
    assert commands(executor, NOW + 100 * MS, NOW + 1000 * MS) == [3.0] * 45
    assert executor.counts.stops == 1


def test_chunks_in_time_are_no_underrun():
    executor = Executor(settings(), FREE)
    for sequence in range(5):
        begin = NOW + sequence * 100 * MS
        executor.accept(chunk([1.0, 1.0], start=begin, sequence=sequence), begin, None if sequence else HERE)
        commands(executor, begin, begin + 100 * MS)
    assert executor.counts.underruns == 0
    assert executor.counts.chunks_accepted == 5


def test_from_standstill_commands_ramp_from_the_measured_position():
    executor = Executor(settings(ramp=200), FREE)
    executor.accept(chunk([10.0] * 5), NOW, np.array([2.0]))
    told = commands(executor, NOW, NOW + 300 * MS)
    assert told[:11] == pytest.approx([2.0 + 0.8 * k for k in range(11)])
    assert told[11:] == pytest.approx([10.0] * 4)


def test_without_a_measured_position_no_motion_starts():
    executor = Executor(settings(), FREE)
    assert executor.accept(chunk([1.0]), NOW, None) == 'no measured position to start from'
    assert executor.command(NOW) is None
    assert executor.counts.chunks_refused == {'no measured position to start from': 1}


def test_after_a_hold_the_ramp_starts_at_the_last_command():
    executor = Executor(settings(ramp=100, hold=1000), FREE)
    executor.accept(chunk([1.0]), NOW, np.array([1.0]))
    commands(executor, NOW, NOW + 300 * MS)
    again = NOW + 300 * MS
    executor.accept(chunk([2.0] * 5, start=again, sequence=1), again, np.array([55.0]))
    assert commands(executor, again, again + 100 * MS) == pytest.approx([1.0, 1.2, 1.4, 1.6, 1.8])


def test_after_a_stop_the_robot_is_measured_anew():
    executor = Executor(settings(ramp=100, hold=0), FREE)
    executor.accept(chunk([1.0]), NOW, HERE)
    commands(executor, NOW, NOW + 300 * MS)
    again = NOW + 300 * MS
    assert executor.accept(chunk([2.0], start=again, sequence=1), again, None) != ''
    assert executor.accept(chunk([2.0], start=again, sequence=1), again, np.array([5.0])) == ''
    assert executor.command(again)[0] == 5.0


def test_position_limits_clamp_and_count():
    executor = Executor(settings(), bounded(-1.0, 1.5, np.inf))
    executor.accept(chunk([9.0, 9.0]), NOW, HERE)
    assert commands(executor, NOW, NOW + 60 * MS) == [1.5] * 3
    assert executor.counts.position_clamps == 3
    assert executor.counts.step_clamps == 0


def test_the_largest_step_bounds_a_jump_at_the_seam():
    executor = Executor(settings(), bounded(-np.inf, np.inf, 0.25))
    executor.accept(chunk([0.0] * 9), NOW, HERE)
    commands(executor, NOW, NOW + 100 * MS)
    seam = NOW + 100 * MS
    executor.accept(chunk([1.0] * 9, start=seam, sequence=1), seam, None)
    assert commands(executor, seam, seam + 120 * MS) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert executor.counts.step_clamps == 3


def test_a_joint_outside_its_range_comes_back_in_bounded_steps():
    executor = Executor(settings(), bounded(-1.0, 1.0, 0.5))
    executor.accept(chunk([0.9] * 9), NOW, np.array([2.4]))
    assert commands(executor, NOW, NOW + 100 * MS) == pytest.approx([1.9, 1.4, 0.9, 0.9, 0.9])


def test_a_command_that_is_not_finite_is_dropped_whole():
    executor = Executor(settings(ramp=100), FREE)
    executor.accept(chunk([1.0] * 9), NOW, np.array([np.nan]))
    assert commands(executor, NOW, NOW + 100 * MS) == [None] * 5
    assert executor.counts.commands_dropped == 5


def test_a_clock_that_jumps_back_ends_the_motion():
    executor = Executor(settings(), FREE)
    executor.accept(chunk([1.0] * 9), NOW, HERE)
    assert executor.command(NOW + 200 * MS) is not None
    assert executor.command(NOW + 150 * MS) is not None
    assert executor.command(NOW - 5000 * MS) is None
    assert executor.counts.clock_jumps == 1
    assert executor.accept(chunk([1.0], start=NOW - 5000 * MS), NOW - 5000 * MS, HERE) == ''


def test_settings_change_while_running():
    executor = Executor(settings(hold=0), FREE)
    executor.accept(chunk([1.0]), NOW, HERE)
    executor.configure(settings(hold=1000))
    assert executor.command(NOW + 500 * MS) is not None


def test_limits_come_from_the_configuration():
    config = load_config(Path(__file__).parents[2] / 'config' / 'so101.yaml')
    limits = Limits.of(config)
    joint = config.robot.joints[1]
    assert (limits.low[1], limits.high[1], limits.step[1]) == (
        joint.position_min,
        joint.position_max,
        joint.max_step,
    )


@given(
    rows=st.lists(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6), min_size=1, max_size=6),
    gaps=st.lists(st.integers(0, 600), min_size=6, max_size=6),
    start=st.floats(-1.0, 1.0),
)
def test_whatever_the_chunks_say_commands_stay_in_range_and_step(rows, gaps, start):
    limits = bounded(-1.0, 1.0, 0.1)
    executor = Executor(settings(ramp=60), limits)
    now, where = NOW, start
    for sequence, values in enumerate(rows):
        executor.accept(chunk(values, start=now, sequence=sequence), now, np.array([where]))
        end = now + gaps[sequence] * MS
        while now < end:
            command = executor.command(now)
            if command is not None:
                assert -1.0 <= command[0] <= 1.0
                assert abs(command[0] - where) <= 0.1 + 1e-12
                where = float(command[0])
            now += PERIOD


class TestSeams:
    def moving(self, **others):
        executor = Executor(settings(**others), bounded(jump=0.5))
        executor.accept(chunk([0.0] * 9), NOW, HERE)
        commands(executor, NOW, NOW + 100 * MS)
        return executor, NOW + 100 * MS

    def test_a_jump_within_the_bound_is_executed_as_it_is(self):
        executor, seam = self.moving()
        assert executor.accept(chunk([0.4] * 9, start=seam, sequence=1), seam, None) == ''
        assert commands(executor, seam, seam + 40 * MS) == [0.4, 0.4]
        assert executor.counts.jumps_blended == 0
        assert executor.largest_jump == pytest.approx(0.4)

    def test_a_larger_jump_fades(self):
        executor, seam = self.moving(blend_ns=200 * MS)
        executor.accept(chunk([1.0] * 9, start=seam, sequence=1), seam, None)
        told = commands(executor, seam, seam + 240 * MS)
        assert told[0] == 0.0
        assert told[5] == pytest.approx(0.5)
        assert told[10:] == [1.0, 1.0]
        assert np.diff(told).min() >= 0.0
        assert np.diff(told).max() < 0.2
        assert executor.counts.jumps_blended == 1

    def test_a_jump_while_another_fades_begins_at_the_command(self):
        executor, seam = self.moving(blend_ns=200 * MS)
        executor.accept(chunk([1.0] * 9, start=seam, sequence=1), seam, None)
        told = commands(executor, seam, seam + 100 * MS)
        later = seam + 100 * MS
        executor.accept(chunk([-1.0] * 9, start=later, sequence=2), later, None)
        told += commands(executor, later, later + 240 * MS)
        assert np.abs(np.diff(told)).max() < 0.35
        assert told[-1] == -1.0

    def test_a_larger_jump_may_be_refused_and_the_old_chunk_goes_on(self):
        executor, seam = self.moving(refuse_jumps=True)
        refusal = executor.accept(chunk([1.0] * 9, start=seam, sequence=1), seam, None)
        assert refusal == 'jumps by more than max_jump'
        assert commands(executor, seam, seam + 40 * MS) == [0.0, 0.0]
        assert executor.counts.chunks_refused == {refusal: 1}
        assert executor.accept(chunk([0.1] * 9, start=seam, sequence=2), seam, None) == ''

    def test_a_chunk_that_starts_later_is_compared_when_it_starts(self):
        executor, seam = self.moving(blend_ns=100 * MS)
        starts = seam + 200 * MS
        late = Chunk('nano', ('a',), np.full((9, 1), 1.0), seam, starts, 100 * MS, 1, 1)
        assert executor.accept(late, seam, None) == ''
        told = commands(executor, seam, seam + 320 * MS)
        assert told[:11] == [0.0] * 11
        assert told[15:] == [1.0]
        assert executor.counts.jumps_blended == 1

    def test_without_a_ramp_the_bound_holds_from_standstill_too(self):
        executor = Executor(settings(refuse_jumps=True), bounded(jump=0.5))
        assert executor.accept(chunk([1.0] * 9), NOW, HERE) == 'jumps by more than max_jump'
        assert executor.command(NOW) is None
        ramped = Executor(settings(ramp=100, refuse_jumps=True), bounded(jump=0.5))
        assert ramped.accept(chunk([1.0] * 9), NOW, HERE) == ''


class TestStops:
    def moving(self, acceleration=np.inf, **others):
        """At 1 per second, one command before NOW + 100 ms."""
        executor = Executor(settings(**others), bounded(acceleration=acceleration))
        executor.accept(chunk(np.arange(20.0) / 10), NOW, HERE)
        commands(executor, NOW, NOW + 400 * MS)
        return executor, NOW + 400 * MS

    def test_hold_brakes_within_the_limits_and_stays(self):
        executor, now = self.moving(acceleration=5.0)
        before = executor.position[0]
        moving = executor._speed[0]
        executor.stop(now, 'hold')
        told = np.array(commands(executor, now, now + 400 * MS))
        speed = np.diff(told, prepend=before) / 0.02
        assert np.abs(np.diff(speed, prepend=moving)).max() <= 5.0 * 0.02 + 1e-6
        assert told[-1] == told[-2] == pytest.approx(before + moving**2 / 10, abs=0.01)
        assert np.diff(told).min() >= 0.0

    def test_without_an_acceleration_limit_hold_is_at_once(self):
        executor, now = self.moving()
        before = executor.position[0]
        executor.stop(now, 'hold')
        assert commands(executor, now, now + 100 * MS) == [before] * 5
        assert executor.at_rest

    def test_damp_takes_its_time(self):
        executor, now = self.moving(damp_ns=400 * MS)
        before = executor.position[0]
        executor.stop(now, 'damp')
        told = np.array(commands(executor, now, now + 600 * MS))
        assert told[-1] == pytest.approx(before + 0.5 * 0.4, abs=1e-9)
        speed = np.diff(told, prepend=before) / 0.02
        np.testing.assert_allclose(np.diff(speed)[1:18], -1.0 / 0.4 * 0.02, atol=1e-9)

    def test_stop_brakes_and_is_silent_then(self):
        executor, now = self.moving(acceleration=5.0)
        executor.stop(now, 'stop')
        told = commands(executor, now, now + 400 * MS)
        sent = [value for value in told if value is not None]
        assert 5 < len(sent) < 18
        assert told[len(sent) :] == [None] * (20 - len(sent))
        assert executor.position is None

    def test_stopped_nothing_is_accepted_until_a_reset(self):
        executor, now = self.moving()
        executor.stop(now, 'hold')
        fresh = chunk([5.0] * 9, start=now, sequence=1)
        assert executor.accept(fresh, now, HERE) == 'stopped'
        assert executor.entry is None
        executor.reset(now + 20 * MS)
        assert executor.command(now + 20 * MS) is None
        assert executor.accept(fresh, now + 40 * MS, HERE) == 'from before the reset'
        assert executor.accept(chunk([5.0] * 9, start=now + 20 * MS), now + 40 * MS, HERE) == ''

    def test_the_first_stop_brakes_and_a_later_one_changes_only_what_follows(self):
        executor, now = self.moving(acceleration=5.0)
        executor.stop(now, 'hold')
        first = commands(executor, now, now + 100 * MS)
        executor.stop(now + 100 * MS, 'stop')
        told = first + commands(executor, now + 100 * MS, now + 400 * MS)
        assert np.diff([value for value in told if value is not None]).min() >= 0.0
        assert told[-1] is None

    def test_a_stop_before_any_motion_commands_nothing(self):
        executor = Executor(settings(), FREE)
        executor.stop(NOW, 'hold')
        assert executor.command(NOW) is None

    def test_a_clock_that_jumps_back_does_not_end_a_stop(self):
        executor, now = self.moving()
        executor.stop(now, 'hold')
        assert executor.command(now - 10_000 * MS) is not None
        assert executor.accept(chunk([0.0], start=now - 10_000 * MS), now - 10_000 * MS, HERE) == 'stopped'

    def test_at_the_end_of_a_chunk_a_joint_comes_to_rest_and_does_not_turn_back(self):
        executor = Executor(settings(hold=1000), bounded(acceleration=5.0))
        executor.accept(chunk(np.arange(5.0) / 10), NOW, HERE)
        told = np.array(commands(executor, NOW, NOW + 1200 * MS))
        assert np.diff(told).min() >= 0.0
        change = np.diff(np.diff(told)) / 0.02**2
        assert np.abs(change).max() <= 5.0 + 1e-6

    def test_a_ramp_into_a_pose_ends_at_the_pose(self):
        executor = Executor(settings(ramp=200, hold=2000), bounded(acceleration=20.0))
        executor.accept(chunk([0.5]), NOW, HERE)
        told = np.array(commands(executor, NOW, NOW + 1500 * MS))
        assert told[-1] == pytest.approx(0.5, abs=1e-9)
        assert np.abs(np.diff(np.diff(told))).max() / 0.02**2 <= 20.0 + 1e-6

    @pytest.mark.parametrize('action', ['hold', 'damp', 'zero_velocity'])
    def test_when_chunks_stay_away_the_last_command_is_repeated(self, action):
        executor = Executor(settings(hold=40, safe_action=action), FREE)
        executor.accept(chunk([3.0]), NOW, HERE)
        assert commands(executor, NOW + 100 * MS, NOW + 1000 * MS) == [3.0] * 45


def test_in_sync_the_pause_between_chunks_is_no_underrun_and_needs_no_ramp():
    executor = Executor(settings(ramp=100, hold=300, combine=Combine.APPEND), FREE)
    executor.accept(chunk([0.0, 0.0]), NOW, HERE)
    commands(executor, NOW, NOW + 300 * MS)
    again = NOW + 300 * MS
    executor.accept(chunk([1.0] * 2, start=NOW + 200 * MS, sequence=1), again, HERE)
    assert commands(executor, again, again + 60 * MS) == [1.0] * 3
    assert executor.counts.underruns == 0
    commands(executor, again, again + 1000 * MS)
    assert (executor.counts.underruns, executor.counts.stops) == (0, 1)


def test_the_ensemble_is_executed_on_the_grid():
    executor = Executor(settings(combine=Combine.AVERAGE, decay=0.0), FREE)
    executor.accept(chunk([0.0] * 9), NOW, HERE)
    executor.accept(chunk([1.0] * 9, sequence=1), NOW, HERE)
    assert commands(executor, NOW, NOW + 40 * MS) == [0.5, 0.5]


def test_a_preview_is_what_would_be_commanded_and_changes_nothing():
    executor = Executor(settings(ramp=100, hold=200), bounded(velocity=20.0, acceleration=50.0))
    executor.accept(chunk(np.linspace(0, 1, 10)), NOW, np.array([0.5]))
    ahead = executor.preview(NOW, [NOW + PERIOD * (row + 1) for row in range(70)])
    assert executor.counts.commands == 0
    told = commands(executor, NOW + PERIOD, NOW + 71 * PERIOD)
    assert len(ahead) == sum(value is not None for value in told)
    np.testing.assert_allclose(ahead[:, 0], [value for value in told if value is not None], atol=1e-12)


def test_clamps_are_counted_for_each_joint():
    free = np.full(2, np.inf)
    limits = Limits(-free, free, free, np.array([np.inf, 1.0]), free, free, 0.02)
    executor = Executor(settings(), limits)
    both = Chunk('nano', ('a', 'b'), np.full((9, 2), 1.0), NOW, NOW, 100 * MS, 1, 0)
    executor.accept(both, NOW, np.zeros(2))
    for tick in range(3):
        executor.command(NOW + tick * PERIOD)
    assert (executor.counts.velocity_clamps, executor.clamps_of) == (3, {1: 3})
