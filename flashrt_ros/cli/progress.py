"""One line of progress with an estimate, for people; nothing where the output is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm


class Progress:
    """Seconds of bags that are done, of all. lengths_s: of every job's bag."""

    def __init__(self, lengths_s: Sequence[float], unit: str = 's of bags') -> None:
        self._lengths_s, self._done_s = list(lengths_s), [0.0] * len(lengths_s)
        self._bar = tqdm(
            total=round(sum(lengths_s), 1),
            unit=unit,
            disable=not sys.stderr.isatty(),
            bar_format='{l_bar}{bar}| {n:.0f}/{total:.0f} s of bags [{elapsed}<{remaining}, {rate_fmt}]',
        )

    def told(self, number: int, seconds: float) -> None:
        """A job has come so far."""
        seconds = min(seconds, self._lengths_s[number])
        self._bar.update(max(0.0, seconds - self._done_s[number]))
        self._done_s[number] = max(seconds, self._done_s[number])

    def ended(self, number: int, line: str) -> None:
        """A job is over. line: what to say of it, or ''."""
        self.told(number, self._lengths_s[number])
        if line:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
