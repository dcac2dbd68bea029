"""When a message was sent, on simulated time, from when it was sent on the system's.

A node acts at a time of /clock and publishes then; a recorder sees the message later, when its own /clock has
moved on. Both clocks are known where /clock is published, and in between they run alike.
"""

from __future__ import annotations

from bisect import bisect_right

KEPT = 200
"""Messages of /clock that are remembered: more than may overtake another message."""


class SentTime:
    """Pairs of both clocks, each when a message of /clock was sent. Usable without ROS; times in ns."""

    def __init__(self) -> None:
        self._sent: list[int] = []
        self._clock: list[int] = []

    def note(self, sent_ns: int, clock_ns: int) -> None:
        """A message of /clock. sent_ns: system time. clock_ns: what it says."""
        place = bisect_right(self._sent, sent_ns)
        self._sent.insert(place, sent_ns)
        self._clock.insert(place, clock_ns)
        del self._sent[:-KEPT], self._clock[:-KEPT]

    def at(self, sent_ns: int) -> int:
        """Simulated time of something sent then; 0 before the clock began.

        Behind the last message of /clock it goes on as before it, for one step: the clock may be paused.
        """
        place = bisect_right(self._sent, sent_ns) - 1
        if place < 0:
            return 0
        behind = min(place, len(self._sent) - 2)
        if behind < 0:
            return self._clock[place]
        system = self._sent[behind + 1] - self._sent[behind]
        simulated = max(0, self._clock[behind + 1] - self._clock[behind])
        share = min(1.0, (sent_ns - self._sent[place]) / system) if system else 0.0
        return self._clock[place] + round(share * simulated)
