"""Work of a process that keeps out of the way of a loop's ticks."""

import threading

import pytest

from flashrt_ros.nodes.tick_gate import TickGate

MS = 1_000_000


class World:
    """A gate, its clock, and work in a thread that takes 0.4 ms of that clock."""

    def __init__(self):
        self.now = 0
        self.gate = TickGate(longest_ns=MS, now_ns=lambda: self.now)

    def work(self, took=0.4 * MS):
        with self.gate.between():
            self.now += round(took)

    def work_beside(self):
        thread = threading.Thread(target=self.work)
        thread.start()
        return thread

    def assert_work_waits(self, next_due=None):
        """Until the loop expects the tick that is next; the fake clock stands still, the wait does not."""
        self.gate._longest_ns = 60_000 * MS
        thread = self.work_beside()
        thread.join(0.1)
        assert thread.is_alive()
        self.gate.expect(next_due)
        thread.join(10.0)
        assert not thread.is_alive()


@pytest.fixture
def world():
    world = World()
    world.work()
    return world


def test_work_that_will_be_over_before_the_tick_begins_at_once(world):
    world.gate.expect(world.now + round(0.5 * MS))
    world.work()
    assert world.now == round(0.8 * MS)


def test_other_work_waits_for_the_tick_and_begins_behind_it(world):
    world.gate.expect(world.now + round(0.3 * MS))
    world.assert_work_waits(world.now + 2 * MS)
    assert world.now == round(0.8 * MS)


def test_it_may_go_on_into_what_prepares_a_tick(world):
    world.gate._into_ns = round(0.2 * MS)
    world.gate.expect(world.now + round(0.3 * MS))
    world.work()
    assert world.now == round(0.8 * MS)


def test_during_a_tick_it_waits_for_its_end(world):
    world.gate.expect(world.now - 1)
    world.assert_work_waits()


def test_without_a_loop_nothing_is_waited_for(world):
    world.work()
    world.gate.expect(world.now)
    world.gate.expect(None)
    world.work()
    assert world.now == round(1.2 * MS)


def test_a_tick_that_never_ends_holds_nothing_up_for_good(world):
    world.gate.expect(world.now)
    thread = world.work_beside()
    thread.join(10.0)
    assert not thread.is_alive()


def test_work_that_took_long_once_still_has_its_turn(world):
    world.work(took=50 * MS)
    world.gate.expect(world.now + round(1.1 * MS))
    world.work()
    assert world.now == round(50.8 * MS)


def test_one_slow_piece_of_work_keeps_none_that_follow_from_the_tick(world):
    for took in (*[0.1 * MS] * 9, 0.9 * MS, *[0.1 * MS] * 10):
        world.work(took)
    begin = world.now
    world.gate.expect(begin + round(0.2 * MS))
    world.work(0.1 * MS)
    assert world.now == begin + round(0.1 * MS)


def test_work_that_is_often_slow_waits(world):
    for took in [0.1 * MS, 0.9 * MS, 0.9 * MS] * 7:
        world.work(took)
    world.gate.expect(world.now + round(0.2 * MS))
    world.assert_work_waits()


def test_what_is_raised_inside_is_raised_outside(world):
    with pytest.raises(ValueError, match='bad'), world.gate.between():
        raise ValueError('bad')
    world.gate.expect(world.now + 2 * MS)
    world.work()
