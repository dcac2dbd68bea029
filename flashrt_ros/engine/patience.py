"""Waiting for results that take about as long each time: asleep at first, then awake for what comes next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

RUN_UP_S = 0.9e-3
"""Before a result: enough to rehearse what is done with it, which takes 0.4 ms, and little more."""

_REMEMBERED = 8


class Patience:
    """Remembers how long the last results took. One thread at a time; clock: of all times here [s]."""

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._took_s = deque[float](maxlen=_REMEMBERED)

    def rest(self, began: float) -> bool:
        """Sleep until RUN_UP_S before the earliest end of what began then. Whether there was time to."""
        left_s = began + min(self._took_s, default=0.0) - RUN_UP_S - self._clock()
        if left_s <= 0:
            return False
        self._sleep(left_s)
        return True

    def ended(self, began: float) -> None:
        """What began then has ended; or before, but was looked for only now."""
        self._took_s.append(self._clock() - began)
