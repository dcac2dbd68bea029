"""Numbers with known answers."""

import math

import numpy as np
import pytest

from flashrt_ros.evaluation.metrics import Rate, Summary, Window, intervals, jitter, lateness

MS = 1_000_000


def grid(rate_hz, count, begin_ns=0):
    return begin_ns + np.round(np.arange(count) * 1e9 / rate_hz).astype(np.int64)


def test_summary_of_one_to_hundred():
    summary = Summary.of(range(1, 101))
    assert summary.count == 100
    assert summary.mean == 50.5
    assert summary.p50 == 50.5
    assert summary.p90 == pytest.approx(90.1)
    assert summary.p99 == pytest.approx(99.01)
    assert summary.largest == 100


def test_summary_of_nothing_claims_nothing():
    summary = Summary.of([])
    assert summary.count == 0
    assert math.isnan(summary.p50)
    assert math.isnan(summary.largest)


def test_stream_that_keeps_its_rate():
    rate = Rate.of(grid(50, 501), 50.0, Window(0, 10_000 * MS))
    assert rate.achieved_hz == 50.0
    assert rate.count == 500
    assert rate.shortfall == 0.0
    assert rate.largest_gap == pytest.approx(0.02)


def test_stream_that_dies_half_way_has_half_the_rate():
    rate = Rate.of(grid(50, 251), 50.0, Window(0, 10_000 * MS))
    assert rate.achieved_hz == 25.0
    assert rate.shortfall == 0.5
    assert rate.largest_gap == pytest.approx(5.0)


def test_stream_that_starts_late_has_a_gap_at_the_beginning():
    rate = Rate.of(grid(10, 10, begin_ns=2_000 * MS), 10.0, Window(0, 3_000 * MS))
    assert rate.largest_gap == pytest.approx(2.0)


def test_stream_without_messages():
    rate = Rate.of(np.array([], dtype=np.int64), 5.0, Window(0, 2_000 * MS))
    assert (rate.achieved_hz, rate.count, rate.shortfall, rate.largest_gap) == (0.0, 0, 1.0, 2.0)


def test_empty_window_is_not_a_division_by_zero():
    rate = Rate.of(grid(5, 5), 5.0, Window(0, 0))
    assert (rate.achieved_hz, rate.shortfall) == (0.0, 1.0)


def test_messages_outside_the_window_do_not_count():
    assert Rate.of(grid(10, 100), 10.0, Window(1_000 * MS, 2_000 * MS)).count == 10


def test_event_that_opens_the_window_is_not_counted_on_top():
    assert Rate.of(grid(5, 11), 5.0, Window(0, 2_000 * MS)).achieved_hz == 5.0


def test_intervals_of_messages_out_of_order_are_those_in_order():
    assert intervals(np.array([30, 10, 20]) * MS).tolist() == pytest.approx([0.01, 0.01])


def test_one_late_event_shows_in_two_intervals_of_jitter():
    times = grid(100, 10)
    times[4] += 3 * MS
    assert jitter(times, 100.0) == pytest.approx([0, 0, 0, 0.003, -0.003, 0, 0, 0, 0], abs=1e-9)


def test_one_late_event_is_late_once():
    times = grid(100, 10, begin_ns=1_700_000_000 * 10**9)
    times[4] += 3 * MS
    assert lateness(times, 100.0) == pytest.approx([0, 0, 0, 0, 0.003, 0, 0, 0, 0, 0], abs=1e-9)


def test_first_event_that_is_late_does_not_move_the_grid():
    times = grid(100, 10)
    times[0] += 6 * MS
    assert lateness(times, 100.0) == pytest.approx([0.006, *np.zeros(9)], abs=1e-9)


def test_event_just_before_its_grid_point_is_early():
    times = grid(100, 10)
    times[4] -= MS // 2
    assert lateness(times, 100.0) == pytest.approx([0, 0, 0, 0, -0.0005, 0, 0, 0, 0, 0], abs=1e-9)


def test_skipped_deadline_does_not_make_the_rest_late():
    assert lateness(np.delete(grid(100, 10), 5), 100.0) == pytest.approx(np.zeros(9), abs=1e-9)


def test_clock_that_drifts_is_ever_later():
    times = grid(99.9, 50)  # 0.1 % slow against 100 Hz: 10.01 us more at every event
    assert lateness(times, 100.0)[-1] == pytest.approx(49 * (1 / 99.9 - 1 / 100), rel=1e-4)


def test_lateness_of_nothing():
    assert lateness(np.array([], dtype=np.int64), 100.0).size == 0
