"""A thread that does one thing at a fixed rate, on absolute deadlines."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rclpy.clock import ROSClock
from rclpy.impl.rcutils_logger import RcutilsLogger

from flashrt_ros.control.pacing import Deadlines, PaceMeter, UsualTime
from flashrt_ros.nodes.clock import SPIN_NS, LoopClock
from flashrt_ros.nodes.tick_gate import TickGate
from flashrt_ros.scheduling import wake_exactly

_WINDOW_S = 10.0

_MOST_AHEAD_NS = 40_000
"""How far before its deadline a tick may begin, so that its work is done then and not behind it."""

_IN_TIME_NS = 5_000_000
"""Later than this a tick was held up by the one before, not by the scheduler."""


@dataclass(frozen=True)
class Early:
    """prepare: called with a deadline, on ROS time and on the monotonic clock, lead_ns before it, and again
    shortly before it, because what was made may not hold any more.
    """

    prepare: Callable[[int, int], None]
    lead_ns: int


class FixedRateLoop:
    """Calls `tick(ros_now_ns)` at `rate_hz` between start and stop.

    tick: may return when its work was done [monotonic, ns], which on real time is how late it was. If it is
        prepared early it begins before its deadline by what that usually takes, `_MOST_AHEAD_NS` at most.
    begin: called first in the thread.
    gates: are told of every tick on real time, for other work to keep out of its way.
    early: what is done ahead of a deadline on real time; simulated time does not say what comes next.
    before: called when a tick begins, before it, with whether it was met in time; it may wait.
    meter: rate and lateness over the last ten seconds. skipped: deadlines not served in time.
    failure: why the thread has ended by itself, or ''.
    """

    def __init__(
        self,
        name: str,
        rate_hz: float,
        tick: Callable[[int], int | None],
        logger: RcutilsLogger,
        before: Callable[[bool], None] = lambda in_time: None,
        begin: Callable[[], None] = lambda: None,
        gates: Sequence[TickGate] = (),
        early: Early | None = None,
    ) -> None:
        self._name, self._rate_hz, self._tick, self._logger = name, rate_hz, tick, logger
        self._before, self._begin, self._gates = before, begin, gates
        self._early = early
        self._next: tuple[LoopClock, int] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.meter, self._usual = self._new_meter(), UsualTime()
        self.skipped = 0
        self.failure = ''

    def start(self, ros_clock: ROSClock) -> None:
        self._stop.clear()
        self.meter, self.failure = self._new_meter(), ''
        self._thread = threading.Thread(
            target=self._run, args=(LoopClock(ros_clock),), name=self._name, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Return when the tick that may be running is over."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def make_ready(self) -> None:
        """By another thread, which has changed what the next tick depends on: prepare it, if that is done
        ahead. The loop then finds it prepared."""
        awaited = self._next
        if self._early is not None and awaited is not None:
            clock, due_ns = awaited
            self._early.prepare(clock.ros_at(due_ns), due_ns)

    def _new_meter(self) -> PaceMeter:
        return PaceMeter(window=max(2, round(self._rate_hz * _WINDOW_S)))

    def _run(self, clock: LoopClock) -> None:
        deadlines = Deadlines(round(1e9 / self._rate_hz), clock.now_ns())
        try:
            wake_exactly()
            self._begin()
            while self._wait(clock, deadlines.next_ns):
                now_ns = clock.now_ns()
                late_ns, skipped = deadlines.meet(now_ns)
                self.skipped += skipped
                self._before(late_ns < _IN_TIME_NS)
                done_ns = self._tick(clock.ros_now_ns())
                if done_ns is not None and not clock.simulated:
                    self._usual.note(done_ns - now_ns)
                    late_ns += done_ns - now_ns
                self.meter.note(now_ns, late_ns)
        except Exception:
            self.failure = traceback.format_exc().strip().splitlines()[-1]
            self._logger.fatal(f'{self._name} has ended: {traceback.format_exc()}')
        finally:
            self._next = None
            for gate in self._gates:
                gate.expect(None)

    def _wait(self, clock: LoopClock, due_ns: int) -> bool:
        if clock.simulated:
            return clock.wait_until(due_ns, self._stop)
        self._next = clock, due_ns
        begin_ns = due_ns - (0 if self._early is None else self._early.lead_ns)
        for gate in self._gates:
            gate.expect(begin_ns)
        if not clock.wait_until(begin_ns, self._stop):
            return False
        if self._early is not None and clock.now_ns() < due_ns:
            self._be_ready(self._early, clock, due_ns)
        return not self._stop.is_set()

    def _be_ready(self, early: Early, clock: LoopClock, due_ns: int) -> None:
        early.prepare(clock.ros_at(due_ns), due_ns)
        begin_ns = due_ns - min(self._usual.ns, _MOST_AHEAD_NS)
        clock.rest_until(due_ns - SPIN_NS)
        early.prepare(clock.ros_at(due_ns), due_ns)
        clock.spin_until(begin_ns)
