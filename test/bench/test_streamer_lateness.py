"""Lateness of commands, from nothing but the times at which they were written."""

import numpy as np
import pytest

from flashrt_ros.control.pacing import Deadlines

pytestmark = pytest.mark.ros

PERIOD = 2_000_000
BIN = 10_000


def commands(held_up, count=2000, phase=1_234_567, takes=100_000):
    """Times written by a loop, and how late each was. held_up: tick -> ns that it wakes too late."""
    deadlines, now, written, late = Deadlines(PERIOD, 10**12 + phase), 0, [], []
    for tick in range(count):
        now = max(now, deadlines.next_ns + held_up.get(tick, 0))
        late.append(deadlines.meet(now)[0])
        now += takes
        written.append(now)
    return np.array(written), np.array(late)


@pytest.mark.parametrize('phase', [0, 5_000, 1_234_567, 1_999_999])
@pytest.mark.parametrize('delay', [300_000, 1_850_000, 3_100_000, 7_777_777])
def test_a_command_that_was_held_up_is_late_by_that_and_the_others_are_not(phase, delay):
    from benchmarks.streamer.trial import lateness

    written, late = commands(dict.fromkeys(range(50, 2000, 50), delay), phase=phase)
    found = lateness(written, PERIOD)
    assert (late >= min(delay, PERIOD)).sum() == 39
    assert np.abs(found - late).max() <= BIN


def test_a_busy_machine_does_not_move_the_deadlines():
    from benchmarks.streamer.trial import lateness

    rng = np.random.default_rng(0)
    held_up = {tick: int(rng.exponential(400_000)) for tick in range(5000)}
    written, late = commands(held_up, 5000)
    found = lateness(written, PERIOD)
    assert np.percentile(found, (50, 90, 99)) == pytest.approx(np.percentile(late, (50, 90, 99)), rel=0.2)


def test_a_command_that_took_less_time_than_most_makes_the_next_no_period_late():
    from benchmarks.streamer.trial import lateness

    written, _ = commands({}, takes=100_000)
    quick = np.arange(100, 2000, 300)
    written[quick] -= 30_000
    found = lateness(written, PERIOD)
    assert found.max() <= BIN
    assert found[quick].min() == pytest.approx(-30_000, abs=BIN)


def test_rounds_are_shown_for_what_each_of_them_was():
    from benchmarks.streamer.__main__ import HEAD, row
    from benchmarks.streamer.trial import Found

    rounds = [Found(np.full(1000, late_ns), 500.0, 4e-4) for late_ns in (100_000, 3_000_000, 200_000)]
    cells = dict(zip(HEAD, row(3, 'this', rounds).strip('| ').split(' | '), strict=True))
    assert cells['p99 of the rounds [ms]'] == '0.100 / 0.200 / 3.000'
    assert (cells['p50 [ms]'], cells['p99 [ms]'], cells['commands/s']) == ('0.200', '3.000', '500.0')
