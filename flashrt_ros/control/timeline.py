"""What the robot should do now, as a function of the chunks received and of the clock.

How chunks follow each other is `Combine`: a new one replaces the old one on the time grid (rows consumed
while it was computed are skipped), begins when the old one is over, or is averaged with those that cover
the same time. A row is consumed only while the robot moves. So the first chunk from standstill starts at
row 0, however long its inference took, and one that comes after a hold goes on where the motion ended.

Usable offline: give times in ns of any clock to `accept` and `target`; nothing here reads one.
"""

from __future__ import annotations

import copy
import enum
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from flashrt_ros.control.chunk import Chunk

MAX_FUTURE_NS = 100_000_000
"""An observation further ahead of the clock is from another time base; synchronised hosts differ by less."""


class Phase(enum.Enum):
    IDLE = 'idle'
    RUNNING = 'running'
    HOLDING = 'holding'
    STOPPED = 'stopped'


class Combine(enum.Enum):
    """REPLACE: the newest chunk that has begun. APPEND: one after the other, each from row 0.

    AVERAGE: ACT's temporal ensemble, all chunks that cover the moment, the i-th oldest with exp(-decay * i).
    """

    REPLACE = 'replace'
    APPEND = 'append'
    AVERAGE = 'average'


@dataclass(frozen=True)
class Entry:
    """A chunk in execution. begin_ns: when its row 0 counts as due."""

    chunk: Chunk
    begin_ns: int

    @property
    def end_ns(self) -> int:
        return self.begin_ns + self.chunk.length_ns

    def at(self, now_ns: int, interpolate: bool) -> np.ndarray:
        """float64 [D]: the row at this time; the first before it begins, the last after it ends."""
        rows, last = self.chunk.actions, self.chunk.horizon - 1
        row, into = divmod(now_ns - self.begin_ns, self.chunk.step_ns)
        if row < 0:
            return rows[0]
        if row >= last:
            return rows[last]
        if not interpolate:
            return rows[row]
        return rows[row] + (into / self.chunk.step_ns) * (rows[row + 1] - rows[row])


class Timeline:
    """Chunks in, target rows out.

    interpolate: between rows go along the line between them, else keep the earlier row.
    hold_ns: how long the last row is held after its time is over.
    max_age_ns: a chunk whose observation is older is refused.
    decay: of AVERAGE; lerobot's ACTTemporalEnsembler has 0.01.
    """

    def __init__(
        self,
        interpolate: bool,
        hold_ns: int,
        max_age_ns: int,
        combine: Combine = Combine.REPLACE,
        decay: float = 0.01,
    ) -> None:
        self.interpolate, self.hold_ns, self.max_age_ns = interpolate, hold_ns, max_age_ns
        self.combine, self.decay = combine, decay
        self.not_before_ns: int | None = None
        self._entries: list[Entry] = []
        # Begin and end of each motion without a break; no acceptable chunk is older than so many of them.
        self._motions: deque[tuple[int, int]] = deque(maxlen=16)

    @property
    def entry(self) -> Entry | None:
        """The newest chunk accepted, and when it begins."""
        return self._entries[-1] if self._entries else None

    @property
    def chunk(self) -> Chunk | None:
        return self._entries[-1].chunk if self._entries else None

    @property
    def end_ns(self) -> int:
        """When the motion is over; 0 before any chunk."""
        ends = [entry.end_ns for entry in self._entries]
        if not ends:
            return 0
        return max(ends) if self.combine is Combine.AVERAGE else ends[-1]

    def clear(self, not_before_ns: int | None = None) -> None:
        """Forget all motion. Chunks observed before `not_before_ns` are refused from now on, as in flight."""
        self._entries = []
        self._motions.clear()
        self.not_before_ns = not_before_ns

    def copy(self) -> Timeline:
        """The same motion, apart: what the copy accepts does not change this one."""
        other = copy.copy(self)
        other._entries, other._motions = list(self._entries), self._motions.copy()
        return other

    def refusal(self, chunk: Chunk, now_ns: int) -> str:
        """Why a chunk must not be executed, or ''.

        'superseded', 'from before the reset', 'too old', 'from the future', or 'expired'.
        """
        current = self.chunk
        if current is not None and (chunk.epoch, chunk.sequence) <= (current.epoch, current.sequence):
            return 'superseded'
        if self.not_before_ns is not None and chunk.observed_ns < self.not_before_ns:
            return 'from before the reset'
        if now_ns - chunk.observed_ns > self.max_age_ns:
            return 'too old'
        if chunk.observed_ns - now_ns > MAX_FUTURE_NS:
            return 'from the future'
        return 'expired' if self._begin_of(chunk, now_ns) + chunk.length_ns <= now_ns else ''

    def accept(self, chunk: Chunk, now_ns: int) -> str:
        """Execute this chunk from now on. Returns the refusal, or ''."""
        refusal = self.refusal(chunk, now_ns)
        if refusal:
            return refusal
        entry = Entry(chunk, self._begin_of(chunk, now_ns))
        moving = self.phase(now_ns) is Phase.RUNNING
        motion_begin = self._motions.pop()[0] if moving else now_ns
        self._entries = [*(self._needed_beside(entry, now_ns) if moving else []), entry]
        self._motions.append((motion_begin, self.end_ns))
        return ''

    def phase(self, now_ns: int) -> Phase:
        if not self._entries:
            return Phase.IDLE
        if now_ns < self.end_ns:
            return Phase.RUNNING
        return Phase.HOLDING if now_ns < self.end_ns + self.hold_ns else Phase.STOPPED

    def resting(self, now_ns: int) -> bool:
        """Whether the last row has been reached, so that the target does not move any more."""
        return bool(self._entries) and now_ns >= self.end_ns - self._entries[-1].chunk.step_ns

    def target(self, now_ns: int) -> np.ndarray | None:
        """float64 [D]: where the joints should be now; the last row after the end; None before any chunk."""
        if not self._entries:
            return None
        if self.combine is Combine.AVERAGE:
            return self._average(now_ns)
        begun = [entry for entry in self._entries if entry.begin_ns <= now_ns]
        return (begun or self._entries[:1])[-1].at(now_ns, self.interpolate)

    def _average(self, now_ns: int) -> np.ndarray:
        """Source: ACT, arXiv 2304.13705; lerobot 0.6.1 `policies/act/modeling_act.py`, not as a recursion."""
        covering = [entry for entry in self._entries if entry.begin_ns <= now_ns < entry.end_ns]
        if not covering:
            return max(self._entries, key=lambda entry: entry.end_ns).at(now_ns, self.interpolate)
        weights = [math.exp(-self.decay * age) for age in range(len(covering))]
        rows = np.stack([entry.at(now_ns, self.interpolate) for entry in covering])
        return np.asarray(np.average(rows, axis=0, weights=weights))

    def _needed_beside(self, new: Entry, now_ns: int) -> list[Entry]:
        """Older chunks that still say what to do at some time from now on."""
        if self.combine is Combine.AVERAGE:
            return [entry for entry in self._entries if entry.end_ns > now_ns]
        if new.begin_ns <= now_ns:
            return []
        begun = [entry for entry in self._entries if entry.begin_ns <= now_ns][-1:]
        waiting = [entry for entry in self._entries if now_ns < entry.begin_ns < new.begin_ns]
        return [*begun, *waiting]

    def _begin_of(self, chunk: Chunk, now_ns: int) -> int:
        """When row 0 counts as due: the chunk's own start, put off by the time the robot stood since then."""
        if self.combine is Combine.APPEND:
            return max(now_ns, self.end_ns)
        since_start = max(0, now_ns - chunk.start_ns)
        consumed = sum(
            max(0, min(end, now_ns) - max(begin, chunk.start_ns))
            for begin, end in self._motions
            if begin < now_ns
        )
        return chunk.start_ns + since_start - consumed
