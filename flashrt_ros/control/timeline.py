"""What the robot should do now, as a function of the chunks received and of the clock.

A new chunk replaces the old one on the time grid: rows consumed while it was computed are skipped. A row is
consumed only while the robot moves. So the first chunk from standstill starts at row 0, however long its
inference took, and one that comes after a hold goes on where the motion ended.
"""

from __future__ import annotations

import enum
from collections import deque

import numpy as np

from flashrt_ros.control.chunk import Chunk

MAX_FUTURE_NS = 100_000_000
"""An observation further ahead of the clock is from another time base; synchronised hosts differ by less."""


class Phase(enum.Enum):
    IDLE = 'idle'
    RUNNING = 'running'
    HOLDING = 'holding'
    STOPPED = 'stopped'


class Timeline:
    """Chunks in, target rows out.

    interpolate: between rows go along the line between them, else keep the earlier row.
    hold_ns: how long the last row is held after its time is over.
    max_age_ns: a chunk whose observation is older is refused.
    """

    def __init__(self, interpolate: bool, hold_ns: int, max_age_ns: int) -> None:
        self.interpolate, self.hold_ns, self.max_age_ns = interpolate, hold_ns, max_age_ns
        self._chunk: Chunk | None = None
        self._begin_ns = 0
        # Begin and end of each motion without a break; no acceptable chunk is older than so many of them.
        self._motions: deque[tuple[int, int]] = deque(maxlen=16)

    @property
    def chunk(self) -> Chunk | None:
        return self._chunk

    @property
    def end_ns(self) -> int:
        """When the current chunk is over."""
        return self._begin_ns + (self._chunk.length_ns if self._chunk else 0)

    def refusal(self, chunk: Chunk, now_ns: int) -> str:
        """Why a chunk must not be executed: 'superseded', 'too old', 'from the future', 'expired', or ''."""
        current = self._chunk
        if current is not None and (chunk.epoch, chunk.sequence) <= (current.epoch, current.sequence):
            return 'superseded'
        if now_ns - chunk.observed_ns > self.max_age_ns:
            return 'too old'
        if chunk.observed_ns - now_ns > MAX_FUTURE_NS:
            return 'from the future'
        return 'expired' if self._begin_of(chunk, now_ns) + chunk.length_ns <= now_ns else ''

    def accept(self, chunk: Chunk, now_ns: int) -> str:
        """Execute this chunk from now on, in place of the one before. Returns the refusal, or ''."""
        refusal = self.refusal(chunk, now_ns)
        if refusal:
            return refusal
        begin = self._begin_of(chunk, now_ns)
        moving = self.phase(now_ns) is Phase.RUNNING
        motion_begin = self._motions.pop()[0] if moving else now_ns
        self._chunk, self._begin_ns = chunk, begin
        self._motions.append((motion_begin, self.end_ns))
        return ''

    def phase(self, now_ns: int) -> Phase:
        if self._chunk is None:
            return Phase.IDLE
        if now_ns < self.end_ns:
            return Phase.RUNNING
        return Phase.HOLDING if now_ns < self.end_ns + self.hold_ns else Phase.STOPPED

    def target(self, now_ns: int) -> np.ndarray | None:
        """float64 [D]: where the joints should be now; the last row after the end; None before any chunk."""
        if self._chunk is None:
            return None
        rows, last = self._chunk.actions, self._chunk.horizon - 1
        row, into = divmod(now_ns - self._begin_ns, self._chunk.step_ns)
        if row < 0:
            return rows[0]
        if row >= last:
            return rows[last]
        if not self.interpolate:
            return rows[row]
        return rows[row] + (into / self._chunk.step_ns) * (rows[row + 1] - rows[row])

    def _begin_of(self, chunk: Chunk, now_ns: int) -> int:
        """When row 0 counts as due: the chunk's own start, put off by the time the robot stood since then."""
        since_start = max(0, now_ns - chunk.start_ns)
        consumed = sum(
            max(0, min(end, now_ns) - max(begin, chunk.start_ns))
            for begin, end in self._motions
            if begin < now_ns
        )
        return chunk.start_ns + since_start - consumed
