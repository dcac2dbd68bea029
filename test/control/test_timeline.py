"""What the timeline says to do is a function of chunks and time. All times are passed in."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrt_ros.control import Chunk, ChunkError, Phase, Timeline

MS = 1_000_000
STEP = 100 * MS
NOW = 1_700_000_000_000_000_000
NAMES = ('a', 'b')


def chunk(start=NOW, rows=10, base=0.0, sequence=0, epoch=1, step=STEP):
    """Row i holds (base + i, -(base + i))."""
    values = base + np.arange(rows, dtype=np.float64)
    return Chunk('nano', NAMES, np.stack([values, -values], axis=1), start, start, step, epoch, sequence)


@pytest.fixture
def timeline():
    return Timeline(interpolate=True, hold_ns=500 * MS, max_age_ns=1000 * MS)


def test_nothing_before_the_first_chunk(timeline):
    assert timeline.phase(NOW) is Phase.IDLE
    assert timeline.target(NOW) is None


@pytest.mark.parametrize(
    ('late_ms', 'row'), [(0, 0.0), (50, 0.5), (100, 1.0), (899, 8.99), (900, 9.0), (2000, 9.0)]
)
def test_between_rows_along_the_line_and_the_last_row_for_good(timeline, late_ms, row):
    timeline.accept(chunk(), NOW)
    np.testing.assert_allclose(timeline.target(NOW + late_ms * MS), [row, -row], rtol=0, atol=1e-12)


@pytest.mark.parametrize(('late_ms', 'row'), [(0, 0.0), (99, 0.0), (100, 1.0), (950, 9.0)])
def test_between_rows_the_earlier_one_if_not_interpolated(late_ms, row):
    timeline = Timeline(interpolate=False, hold_ns=0, max_age_ns=1000 * MS)
    timeline.accept(chunk(), NOW)
    assert timeline.target(NOW + late_ms * MS)[0] == row


def test_phases_follow_the_clock(timeline):
    timeline.accept(chunk(), NOW)
    times = {999: Phase.RUNNING, 1000: Phase.HOLDING, 1499: Phase.HOLDING, 1500: Phase.STOPPED}
    assert {ms: timeline.phase(NOW + ms * MS) for ms in times} == times


def test_the_first_chunk_starts_at_row_0_however_long_its_inference_took(timeline):
    timeline.accept(chunk(start=NOW - 700 * MS), NOW)
    assert timeline.target(NOW)[0] == 0.0
    assert timeline.target(NOW + STEP)[0] == 1.0
    assert timeline.end_ns == NOW + 10 * STEP


def test_a_later_chunk_replaces_on_the_grid_without_the_rows_consumed(timeline):
    timeline.accept(chunk(start=NOW), NOW)
    observed, arrival = NOW + 200 * MS, NOW + 500 * MS
    timeline.accept(chunk(start=observed, base=100.0, sequence=1), arrival)
    assert timeline.target(arrival)[0] == 103.0


def test_a_chunk_observed_before_the_robot_moved_loses_only_rows_moved_since(timeline):
    timeline.accept(chunk(start=NOW - 300 * MS), NOW)
    timeline.accept(chunk(start=NOW - 100 * MS, base=100.0, sequence=1), NOW + 200 * MS)
    assert timeline.target(NOW + 200 * MS)[0] == 102.0


def test_a_chunk_after_a_hold_goes_on_where_the_motion_ended(timeline):
    timeline.accept(chunk(rows=5), NOW)
    observed, arrival = NOW + 400 * MS, NOW + 700 * MS
    assert timeline.phase(arrival) is Phase.HOLDING
    timeline.accept(chunk(start=observed, base=100.0, sequence=1), arrival)
    assert timeline.target(arrival)[0] == 101.0


def test_time_without_motion_between_two_motions_is_not_consumed(timeline):
    timeline.max_age_ns = 10_000 * MS
    timeline.accept(chunk(rows=2), NOW)
    second = NOW + 1000 * MS
    timeline.accept(chunk(start=second, rows=2, sequence=1), second)
    third = NOW + 2000 * MS
    timeline.accept(chunk(start=NOW + 100 * MS, rows=10, base=100.0, sequence=2), third)
    assert timeline.target(third)[0] == 103.0


@pytest.mark.parametrize(
    ('late', 'refusal'),
    [
        (chunk(sequence=0), 'superseded'),
        (chunk(sequence=5, epoch=0), 'superseded'),
        (chunk(start=NOW - 1100 * MS, sequence=1), 'too old'),
        (chunk(start=NOW + 400 * MS, sequence=1), 'from the future'),
        (chunk(start=NOW, rows=1, sequence=1), 'expired'),
    ],
)
def test_a_chunk_that_must_not_be_executed_changes_nothing(timeline, late, refusal):
    timeline.accept(chunk(), NOW)
    now = NOW + 200 * MS
    assert timeline.accept(late, now) == refusal
    assert timeline.target(now)[0] == 2.0


def test_a_new_epoch_may_count_from_zero(timeline):
    timeline.accept(chunk(sequence=7), NOW)
    assert timeline.accept(chunk(base=50.0, epoch=2), NOW + MS) == ''


@given(
    latencies=st.lists(st.integers(0, 400), min_size=1, max_size=8),
    period=st.integers(20, 300),
    rows=st.integers(1, 12),
)
def test_while_moving_a_chunk_is_always_executed_on_its_own_grid(latencies, period, rows):
    """Once in motion without a break, the row executed is exactly the time since the observation."""
    timeline = Timeline(interpolate=True, hold_ns=0, max_age_ns=10**12)
    begin, arrival = None, 0
    for sequence, latency in enumerate(latencies):
        observed = NOW + sequence * period * MS
        arrival = max(arrival, observed + latency * MS)
        moving = timeline.phase(arrival) is Phase.RUNNING
        new = chunk(start=observed, rows=rows, base=1000.0 * sequence, sequence=sequence)
        refusal = timeline.accept(new, arrival)
        if refusal:
            assert refusal == 'expired'
            continue
        begin = begin if moving else arrival
        consumed = (arrival - observed) if observed >= begin else None
        if consumed is not None:
            row = min(consumed / STEP, rows - 1)
            assert timeline.target(arrival)[0] == pytest.approx(1000.0 * sequence + row)


@given(st.integers(-(10**12), 10**12))
def test_the_target_never_leaves_the_chunk(offset):
    timeline = Timeline(interpolate=True, hold_ns=0, max_age_ns=10**12)
    timeline.accept(chunk(), NOW)
    assert 0.0 <= timeline.target(NOW + offset)[0] <= 9.0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'actions': np.zeros((0, 2))}, "chunk 3 of 'nano': 0 x 2 values for 2 joints"),
        ({'actions': np.zeros((4, 3))}, '4 x 3 values for 2 joints'),
        ({'actions': np.array([[0.0, np.nan]])}, "row 0 of joint 'b' is nan"),
        ({'actions': np.array([[0.0, 0.0], [np.inf, 0.0]])}, "row 1 of joint 'a' is inf"),
        ({'step_ns': 0}, 'the step of 0 ns is not positive'),
        ({'names': ('a', 'a')}, 'a joint is named twice'),
    ],
)
def test_an_impossible_chunk_cannot_be_made(change, message):
    with pytest.raises(ChunkError, match=message):
        replace(chunk(sequence=3), **change)


def test_columns_are_put_into_the_wanted_order():
    swapped = chunk().for_joints(('b', 'a'))
    np.testing.assert_array_equal(swapped.actions, chunk().actions[:, ::-1])


@pytest.mark.parametrize('names', [('a',), ('a', 'c'), ('a', 'b', 'c')])
def test_a_chunk_for_other_joints_is_refused(names):
    with pytest.raises(ChunkError, match='it is for the joints a, b'):
        chunk().for_joints(names)


@pytest.mark.parametrize(('after_ms', 'rows'), [(-50, 0), (0, 0), (99, 0), (100, 1), (250, 2), (5000, 10)])
def test_rows_due_are_counted_on_the_grid(after_ms, rows):
    assert chunk().rows_due(NOW + after_ms * MS) == rows
