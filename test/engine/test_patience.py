"""Sleeping through most of what a GPU takes."""

import pytest

from flashrt_ros.engine.patience import RUN_UP_S, Patience


class World:
    """Results take `takes` seconds of a clock that only sleeping and they move on."""

    def __init__(self):
        self.now, self.takes, self.slept = 100.0, 6e-3, []
        self.patience = Patience(lambda: self.now, self.sleep)

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def run(self, before=0.0):
        """before: seconds between beginning something and waiting for it. Whether there was time to rest."""
        began = self.now
        self.now += before
        rested = self.patience.rest(began)
        self.now = max(self.now, began + self.takes)
        self.patience.ended(began)
        return rested


def test_of_the_first_result_nothing_is_known():
    world = World()
    assert not world.run()
    assert world.slept == []


def test_it_wakes_a_little_before_the_result():
    world = World()
    world.run()
    assert world.run()
    assert world.run(before=2e-3)
    assert world.slept == pytest.approx([6e-3 - RUN_UP_S, 4e-3 - RUN_UP_S])


def test_a_result_that_is_nearly_there_is_waited_for_awake():
    world = World()
    world.run()
    assert not world.run(before=6e-3 - RUN_UP_S / 2)
    assert world.slept == []


def test_results_that_come_sooner_than_before_are_soon_waited_for_awake():
    world = World()
    world.run()
    world.takes = RUN_UP_S / 2
    rested = [world.run() for _ in range(10)]
    assert rested == sorted(rested, reverse=True)
    assert not rested[-1]


def test_it_goes_by_the_shortest_of_late_so_that_a_slow_one_makes_none_wait():
    world = World()
    for takes in (6e-3, 60e-3, 6e-3):
        world.takes = takes
        world.run()
    assert max(world.slept) == pytest.approx(6e-3 - RUN_UP_S)


def test_slower_results_are_soon_what_is_expected():
    world = World()
    world.run()
    world.takes = 12e-3
    for _ in range(20):
        world.run()
    assert world.slept[-1] == pytest.approx(12e-3 - RUN_UP_S)
