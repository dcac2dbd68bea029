"""What of a bag could not be used: named by topic and time, and counted."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any


@dataclass
class Problem:
    """The same thing on the same topic is one problem. first_s, last_s: seconds since the bag's start."""

    topic: str
    what: str
    first_s: float
    last_s: float
    count: int = 1

    def __str__(self) -> str:
        when = f'at {self.first_s:.3f} s'
        if self.count > 1:
            when = f'{self.count} times, from {self.first_s:.3f} s to {self.last_s:.3f} s'
        return f'{self.topic}: {self.what} ({when})'


class Problems:
    """Collects problems of one bag, from any thread. begin_ns: the bag's start."""

    def __init__(self, begin_ns: int) -> None:
        self._begin_ns = begin_ns
        self._found: dict[tuple[str, str], Problem] = {}
        self._lock = threading.Lock()

    def note(self, topic: str, what: str, time_ns: int, kind: str = '') -> None:
        """kind: what makes two of them the same, where `what` holds figures that vary."""
        with self._lock:
            self._note(topic, what, time_ns, kind)

    def _note(self, topic: str, what: str, time_ns: int, kind: str) -> None:
        seconds = (time_ns - self._begin_ns) / 1e9
        known = self._found.get((topic, kind or what))
        if known is None:
            self._found[topic, kind or what] = Problem(topic, what, seconds, seconds)
        else:
            known.count += 1
            known.last_s = seconds

    def all(self) -> list[Problem]:
        return list(self._found.values())

    def as_json(self) -> list[dict[str, Any]]:
        ordered = sorted(self._found.values(), key=lambda p: (p.first_s, p.topic, p.what))
        return [vars(problem) for problem in ordered]
