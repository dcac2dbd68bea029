"""How many rows the robot consumes while the policy thinks: counted, and foretold for the next time."""

from __future__ import annotations

from collections import deque

from flashrt_ros.control.chunk import Chunk


class DelayCounter:
    """Foretells the largest of the last `window` counts, as the paper's queue of delays does.

    fixed: a delay set by hand, which is then foretold in any case. The first chunk from standstill consumes
    nothing and is not counted: cold starts do not stay in the window.
    """

    def __init__(self, window: int, fixed: int | None = None) -> None:
        self.fixed = fixed
        self._counts: deque[int] = deque(maxlen=window)
        self._first_guess = 0

    @property
    def foretold(self) -> int:
        """Rows to expect; before the first count, those that the last inference would have taken."""
        if self.fixed is not None:
            return self.fixed
        return max(self._counts) if self._counts else self._first_guess

    def guess(self, inference_ns: int, step_ns: int) -> None:
        """Only for the time before anything was counted. inference_ns: how long an inference took."""
        self._first_guess = -(-inference_ns // step_ns)

    def count(self, rows: int) -> None:
        self._counts.append(rows)

    def clear(self) -> None:
        """After a reset: the machine may be another one by now."""
        self._counts.clear()


def rows_consumed(executing: Chunk | None, chunk: Chunk, now_ns: int) -> int:
    """Rows that began between the observation of `chunk` and now, while `executing` still moved the robot."""
    if executing is None:
        return 0
    moving_until = executing.start_ns + executing.length_ns
    elapsed = min(now_ns, moving_until) - max(chunk.observed_ns, executing.start_ns)
    return min(max(0, -(-elapsed // chunk.step_ns)), chunk.horizon)
