"""System time to simulated time, from the messages of /clock."""

import pytest

from flashrt_ros.nodes.sent_time import KEPT, SentTime

pytestmark = pytest.mark.ros
MS = 1_000_000


def clock(pairs):
    sent_time = SentTime()
    for sent, simulated in pairs:
        sent_time.note(sent * MS, simulated * MS)
    return lambda sent: sent_time.at(round(sent * MS)) / MS


def test_between_two_messages_of_the_clock_both_run_alike():
    at = clock([(1000, 50), (1010, 70)])
    assert [at(1000), at(1005), at(1010)] == [50, 60, 70]


def test_behind_the_last_message_it_goes_on_for_one_step():
    at = clock([(1000, 50), (1010, 70)])
    assert [at(1012.5), at(1020), at(1500)] == [75, 90, 90]


def test_before_the_clock_there_is_no_time():
    assert clock([])(5) == 0
    assert clock([(1000, 50)])(999) == 0
    assert clock([(1000, 50)])(1003) == 50


def test_messages_that_come_in_another_order_change_nothing():
    pairs = [(1000, 50), (1010, 70), (1020, 90)]
    assert clock(pairs[::-1])(1015) == clock(pairs)(1015) == 80


def test_a_clock_that_jumps_back_stands_until_then():
    at = clock([(1000, 50), (1010, 70), (1020, 10), (1030, 20)])
    assert [at(1015), at(1020), at(1025)] == [70, 10, 15]


def test_what_is_kept_does_not_grow():
    sent_time = SentTime()
    for i in range(10 * KEPT):
        sent_time.note(i * MS, i * MS)
    assert len(sent_time._sent) == len(sent_time._clock) == KEPT
    assert sent_time.at((10 * KEPT - 1) * MS) == (10 * KEPT - 1) * MS
