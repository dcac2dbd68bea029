"""Positions over time as they come in, in a few bytes each: a bag may be hours long."""

from __future__ import annotations

from array import array

import numpy as np


class Track:
    """Rows of `width` numbers with their times. Appending is cheap; the arrays are made when asked for."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._times, self._values = array('q'), array('d')

    def add(self, time_ns: int, row: np.ndarray) -> None:
        """row: [width]."""
        self._times.append(time_ns)
        self._values.frombytes(np.asarray(row, dtype=np.float64).tobytes())

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:
        """(time [ns], float64 [width]) of one row."""
        begin = number * self._width
        return self._times[number], np.array(self._values[begin : begin + self._width])

    @property
    def times_ns(self) -> np.ndarray:
        """int64 [N]."""
        return np.array(self._times, dtype=np.int64)

    @property
    def values(self) -> np.ndarray:
        """float64 [N, width]."""
        return np.array(self._values, dtype=np.float64).reshape(-1, self._width)
