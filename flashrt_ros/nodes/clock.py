"""Waiting for absolute deadlines in a thread, on real or on simulated time."""

from __future__ import annotations

import threading
import time

from rclpy.clock import JumpThreshold, ROSClock
from rclpy.duration import Duration

_POLL_S = 0.05
_FINE_NS = 2_000_000
"""The last stretch of a wait is slept without a lock, which wakes more exactly."""

SPIN_NS = 130_000
"""Before a deadline that is to be met exactly: a sleeping thread wakes some 30 to 50 us late, seldom 100."""


def ros_now_ns(clock: ROSClock) -> int:
    """ROS time [ns]. Where it is not simulated the system is asked: what rclpy makes of it takes 0.03 ms in a
    thread that has just woken."""
    return int(clock.now().nanoseconds) if clock.ros_time_is_active else time.time_ns()


class LoopClock:
    """Time base of a loop: the monotonic clock, which nobody sets, or ROS time where that is simulated."""

    def __init__(self, ros_clock: ROSClock) -> None:
        self._ros_clock = ros_clock
        self.simulated = ros_clock.ros_time_is_active

    def now_ns(self) -> int:
        return self.ros_now_ns() if self.simulated else time.monotonic_ns()

    def ros_now_ns(self) -> int:
        """ROS time, in which messages are stamped."""
        return int(self._ros_clock.now().nanoseconds)

    def ros_at(self, steady_ns: int) -> int:
        """ROS time when the monotonic clock will show this, if nobody sets it."""
        return self.ros_now_ns() + steady_ns - time.monotonic_ns()

    def wait_until(self, deadline_ns: int, stop: threading.Event) -> bool:
        """Sleep until the deadline on this clock. False as soon as a stop is requested.

        Simulated time that jumps back ends the wait too: the deadline has lost its meaning.
        """
        return (
            self._wait_simulated(deadline_ns, stop) if self.simulated else self._wait_real(deadline_ns, stop)
        )

    @classmethod
    def _wait_real(cls, deadline_ns: int, stop: threading.Event) -> bool:
        coarse_ns = deadline_ns - time.monotonic_ns() - _FINE_NS
        if stop.is_set() or (coarse_ns > 0 and stop.wait(coarse_ns * 1e-9)):
            return False
        cls.rest_until(deadline_ns)
        return True

    @staticmethod
    def rest_until(steady_ns: int) -> None:
        """Sleep until the monotonic clock shows this: other threads may run meanwhile, if there is time."""
        left_ns = steady_ns - time.monotonic_ns()
        if left_ns > 0:
            time.sleep(left_ns * 1e-9)

    @staticmethod
    def spin_until(steady_ns: int) -> None:
        """The same awake, without letting another thread run: nothing but the time is waited for."""
        while time.monotonic_ns() < steady_ns:
            pass

    def _wait_simulated(self, deadline_ns: int, stop: threading.Event) -> bool:
        moved = threading.Event()
        threshold = JumpThreshold(
            min_forward=Duration(nanoseconds=1), min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        begin_ns = self.ros_now_ns()
        with self._ros_clock.create_jump_callback(threshold, post_callback=lambda _: moved.set()):
            while begin_ns <= self.ros_now_ns() < deadline_ns and not stop.is_set():
                moved.wait(_POLL_S)
                moved.clear()
        return not stop.is_set()
