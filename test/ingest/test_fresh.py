"""Which frames a wait takes together. Times are passed in."""

import threading
import time

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


class Waiting:
    """A thread that waits for frames, and what was called in which thread."""

    def __init__(self, cameras, work=lambda: None, timeout_s=10.0):
        self.calls, self.came = [], None

        def completed():
            self.calls.append(threading.get_ident())
            work()

        def wait():
            self.came = cameras.fresh.wait(timeout_s, completed)

        self.thread = threading.Thread(target=wait)
        self.thread.start()
        while timeout_s and cameras.fresh._completed is None and self.thread.is_alive():
            time.sleep(0.001)


def bring(cameras, *indices):
    for index in indices:
        cameras.streams[f'camera{index}'].put('frame', 0, MS)


def test_whoever_brings_the_last_frame_does_what_comes_first():
    cameras = Cameras(0.0, 0.0)
    waiting = Waiting(cameras)
    bring(cameras, 0)
    assert waiting.calls == []
    bring(cameras, 1, 0, 1)
    waiting.thread.join(10.0)
    assert waiting.came
    assert waiting.calls == [threading.get_ident()]


def test_a_wait_returns_behind_what_comes_first_and_a_failure_there_is_the_bringers():
    cameras, go = Cameras(0.0), threading.Event()
    waiting = Waiting(cameras, lambda: go.wait(10.0) and 1 / 0)
    failures = []

    def fail():
        try:
            bring(cameras, 0)
        except ZeroDivisionError as error:
            failures.append(error)

    bringer = threading.Thread(target=fail)
    bringer.start()
    waiting.thread.join(0.1)
    assert waiting.thread.is_alive()
    go.set()
    for thread in (waiting.thread, bringer):
        thread.join(10.0)
        assert not thread.is_alive()
    assert waiting.came
    assert len(failures) == 1


def test_for_frames_that_are_there_or_that_nobody_waits_for_any_more_nothing_is_done():
    cameras = Cameras(0.0)
    bring(cameras, 0)
    there = Waiting(cameras, timeout_s=0.0)
    there.thread.join(10.0)
    assert there.came
    cameras.fresh.expect()
    late = Waiting(cameras, timeout_s=0.0)
    late.thread.join(10.0)
    assert not late.came
    bring(cameras, 0)
    assert there.calls == late.calls == []
