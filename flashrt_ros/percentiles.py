"""Percentiles of few numbers, beside a thread that must not wait."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentiles(values: np.ndarray | Sequence[float], ranks: Sequence[float]) -> list[float]:
    """Those of `numpy.percentile` (linear between neighbours), without its first call, which imports numpy.ma
    and keeps Python's lock: 13 ms, or 57 where its bytecode is not cached (benchmarks/host_notes.md).

    values: [N], N >= 1, finite. ranks: 0 to 100.
    """
    ascending = np.sort(np.asarray(values, np.float64))
    places = np.asarray(ranks) / 100 * (len(ascending) - 1)
    return [float(value) for value in np.interp(places, np.arange(len(ascending)), ascending)]
