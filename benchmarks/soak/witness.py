"""Hears what the nodes say: every command on its grid, chunks, phases and stop reasons.

It keeps counts and short lists, nothing that grows with time.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray
from flashrt_ros.msg import ActionChunk
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState

from benchmarks.soak.robot import COMMANDS, JOINTS, SECOND

ALL = QoSProfile(depth=5000, reliability=ReliabilityPolicy.RELIABLE)
_STAMP = struct.Struct('<iI')
_STAMP_AT = 4
GAPS_KEPT = 1000
FIRST = 50


class Grid:
    """Stamps of commands against their grid. All times in ns.

    origin: of the grid, which is the phase that most of the first stamps have; None until these have come.
    slot: the last place served. missed: places without a command. late: served, but after their time.
    duplicates: a second command for a place, as the one with which a stop begins.
    gaps: (stamp before, length) of the first thousand.
    """

    def __init__(self, period_ns: int) -> None:
        self.period_ns = period_ns
        self.origin: int | None = None
        self.slot = -1
        self.count = self.missed = self.duplicates = self.late = self.largest = 0
        self.gaps: list[tuple[int, int]] = []
        self.moved = threading.Event()
        self._first: list[int] = []
        self._last = 0

    def note(self, stamp: int) -> None:
        if self.origin is None:
            self._first.append(stamp)
            if len(self._first) == FIRST:
                phase = Counter(one % self.period_ns for one in self._first).most_common(1)[0][0]
                self.origin = self._first[0] - (self._first[0] - phase) % self.period_ns
                # What came before it was known where the grid lies belongs to the start.
                self.origin += (stamp - self.origin) // self.period_ns * self.period_ns
                self._place(stamp, self.origin)
            return
        self._place(stamp, self.origin)
        self.moved.set()

    def expected(self, until_ns: int) -> int:
        """Places of the grid from the first command up to this time."""
        return 0 if self.origin is None else (until_ns - self.origin) // self.period_ns + 1

    def behind(self, now_ns: int) -> bool:
        """Whether a command would be missed if it became this late."""
        return self.origin is not None and (now_ns - self.origin) // self.period_ns > self.slot + 1

    def _place(self, stamp: int, origin: int) -> None:
        self.count += 1
        slot, late = divmod(stamp - origin, self.period_ns)
        self.late += late > 0
        missed = slot - self.slot - 1
        if missed < 0:
            self.duplicates += 1
            return
        if self._last:
            self.largest = max(self.largest, stamp - self._last)
        if missed:
            self.missed += missed
            if len(self.gaps) < GAPS_KEPT:
                self.gaps.append((self._last, stamp - self._last))
        self.slot, self._last = slot, stamp


class Witness:
    """grid: the commands. chunks, chunks_lost: by their sequence. states, said, values: of /diagnostics.

    events: (simulated time, what) whenever the streamer's state or the number of its stops was another.
    """

    def __init__(self, node: Node, grid: Grid, now_ns: Callable[[], int]) -> None:
        self.grid = grid
        self.events: list[tuple[int, str]] = []
        self._now_ns = now_ns
        self._event = ''
        self.chunks = self.chunks_lost = self.chunks_late = 0
        self.epochs: set[int] = set()
        self.states: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.values: dict[str, dict[str, str]] = {}
        self._sequence: int | None = None
        self._raw: bytes | None = None
        node.create_subscription(JointState, COMMANDS, self._command, ALL, raw=True)
        node.create_subscription(ActionChunk, 'action_chunk', self._chunk, ALL)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnostics, ALL)

    def positions(self) -> list[float]:
        """Where the last command sent the joints."""
        if self._raw is None:
            return [0.0] * len(JOINTS)
        return list(deserialize_message(self._raw, JointState).position)

    def of(self, name: str) -> dict[str, str]:
        """The newest values of a status."""
        return self.values.get(name, {})

    def _command(self, message: bytes) -> None:
        seconds, nanoseconds = _STAMP.unpack_from(message, _STAMP_AT)
        self.grid.note(seconds * SECOND + nanoseconds)
        self._raw = message

    def _chunk(self, message: ActionChunk) -> None:
        self.chunks += 1
        self.chunks_late += message.delay >= message.horizon
        if message.epoch in self.epochs and self._sequence is not None:
            self.chunks_lost += message.sequence - self._sequence - 1
        self.epochs.add(message.epoch)
        self._sequence = message.sequence

    def _diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            self.values[status.name] = values
            if status.level != b'\0':
                # Without its numbers a sentence is the same each time that it is said.
                words = ''.join('#' if sign.isdigit() else sign for sign in status.message)
                self.said[f'{status.name}: {words}'] += 1
            if 'phase' in values:
                parts = (values['phase'], values.get('motion', ''), values.get('stop reason', ''))
                state = ', '.join(part for part in parts if part)
                self.states[state] += 1
                self._note(f'{state}; stops: {stops_of(values)}')

    def _note(self, event: str) -> None:
        if event != self._event and len(self.events) < GAPS_KEPT:
            self.events.append((self._now_ns(), event))
        self._event = event


def stops_of(values: dict[str, str]) -> int:
    """How often the streamer has stopped so far, whatever for."""
    return sum(int(value) for key, value in values.items() if key.startswith('stops, '))
