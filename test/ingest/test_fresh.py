"""Which frames a wait takes together. Times are passed in."""

import pytest

from flashrt_ros.ingest.fresh import Fresh
from flashrt_ros.ingest.stream import Stream

MS = 1_000_000


class Cameras:
    """Cameras whose frames come at given phases of their periods [ms], and what a wait makes of them."""

    def __init__(self, *phases_ms, periods_ms=None):
        self.streams = {f'camera{i}': Stream(f'camera{i}', '/topic') for i in range(len(phases_ms))}
        self.fresh = Fresh(self.streams)
        self.periods = periods_ms or [100.0 / 6] * len(phases_ms)
        self.next = [phase + 1.0 for phase in phases_ms]

    def until(self, end_ms):
        """The moments up to `end_ms` at which a set was complete, each with the ages of its frames [ms]."""
        complete = []
        while (now := min(self.next)) < end_ms:
            index = self.next.index(now)
            self.next[index] += self.periods[index]
            self.streams[f'camera{index}'].put('frame', 0, round(now * MS))
            if self.fresh.wait(0.0):
                samples = [one.latest() for one in self.streams.values()]
                complete.append((now, [now - sample.received_ns / MS for sample in samples]))
                for one, sample in zip(self.streams.values(), samples, strict=True):
                    one.take(sample)
                self.fresh.used()
        return complete


def test_a_wait_that_begins_between_two_cameras_does_not_pair_them_a_frame_apart():
    cameras = Cameras(0.0, 2.0)
    cameras.until(202.0)  # the first has come, the second has not
    assert cameras.streams['camera0'].latest().received_ns > cameras.streams['camera1'].latest().received_ns
    cameras.fresh.expect()
    complete = cameras.until(400.0)
    assert len(complete) == 11
    assert all(max(ages) == pytest.approx(2.0) for _, ages in complete)


@pytest.mark.parametrize('phases', [(0.0, 8.3), (0.0, 5.5, 11.1), (0.0, 4.2, 8.3, 12.5), (3.0, 3.0)])
def test_cameras_at_any_phase_are_complete_once_a_period(phases):
    cameras = Cameras(*phases)
    cameras.until(300.0)
    assert len(cameras.until(600.0)) in (17, 18)


def test_the_slowest_camera_sets_the_pace():
    cameras = Cameras(0.0, 10.0, periods_ms=[1000 / 30, 1000 / 10])
    cameras.until(500.0)
    complete = cameras.until(1500.0)
    assert len(complete) == 10
    assert all(ages[1] == 0.0 and ages[0] < 34 for _, ages in complete)


def test_a_camera_that_is_silent_is_missed_and_welcome_again():
    cameras = Cameras(0.0, 2.0)
    cameras.until(200.0)
    cameras.next[1] += 300.0
    assert not cameras.until(500.0)
    assert len(cameras.until(800.0)) >= 16
