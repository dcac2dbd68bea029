"""From chunks to commands: ramp, hold, safe action and limits, on a clock that the test moves."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrt_ros.configuration import load_config
from flashrt_ros.control import Chunk, Executor, ExecutorSettings, Limits, Phase

MS = 1_000_000
PERIOD = 20 * MS
NOW = 1_700_000_000_000_000_000
FREE = Limits(np.array([-np.inf]), np.array([np.inf]), np.array([np.inf]))
HERE = np.array([0.0])


def settings(ramp=0, hold=100, safe_stop=True):
    return ExecutorSettings(
        interpolate=True, ramp_ns=ramp * MS, hold_ns=hold * MS, max_age_ns=1000 * MS, safe_stop=safe_stop
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
    executor = Executor(settings(hold=40, safe_stop=False), FREE)
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
    executor = Executor(settings(), Limits(np.array([-1.0]), np.array([1.5]), np.array([np.inf])))
    executor.accept(chunk([9.0, 9.0]), NOW, HERE)
    assert commands(executor, NOW, NOW + 60 * MS) == [1.5] * 3
    assert executor.counts.position_clamps == 3
    assert executor.counts.step_clamps == 0


def test_the_largest_step_bounds_a_jump_at_the_seam():
    executor = Executor(settings(), Limits(np.array([-np.inf]), np.array([np.inf]), np.array([0.25])))
    executor.accept(chunk([0.0] * 9), NOW, HERE)
    commands(executor, NOW, NOW + 100 * MS)
    seam = NOW + 100 * MS
    executor.accept(chunk([1.0] * 9, start=seam, sequence=1), seam, None)
    assert commands(executor, seam, seam + 120 * MS) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert executor.counts.step_clamps == 3


def test_a_joint_outside_its_range_comes_back_in_bounded_steps():
    executor = Executor(settings(), Limits(np.array([-1.0]), np.array([1.0]), np.array([0.5])))
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
    limits = Limits(np.array([-1.0]), np.array([1.0]), np.array([0.1]))
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
