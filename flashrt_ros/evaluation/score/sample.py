"""Figures with bootstrap confidence intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

What is drawn with replacement is a *unit*: an episode, because chunks of one episode are alike. Where there
is only one episode a unit is a block of its time (block bootstrap), and the interval says how far this
episode's figure can be trusted, not what another episode would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, SEED, CONFIDENCE = 1000, 20261124, 0.95

MOST_VALUES = 2_000
"""Values used for the interval of a percentile; of more, every k-th in the order of size."""

STATISTICS = ('mean', 'mae', 'rmse', 'p50', 'p90', 'p99', 'max')
"""mae: mean of the magnitudes. rmse: root of the mean square. Percentiles and max are of the magnitudes."""

_PERCENT = {'p50': 0.5, 'p90': 0.9, 'p99': 0.99, 'max': 1.0}


@dataclass(frozen=True)
class Estimate:
    """value: of everything there is; None without any. low, high: 95 % interval; None where it is undefined.

    count: values that went in.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int


NOTHING = Estimate(None, None, None, 0)


@dataclass(frozen=True)
class Sample:
    """values: float64 [n]. units: int32 [n], which unit each belongs to."""

    values: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class Resampling:
    """How often every unit is drawn in every resample: int32 [resamples, units]. over: what a unit is."""

    draws: np.ndarray
    over: str

    @classmethod
    def of(cls, units: int, over: str) -> Resampling:
        rng = np.random.default_rng(SEED)
        drawn = rng.multinomial(units, np.full(units, 1 / max(units, 1)), RESAMPLES)
        return cls(drawn.astype(np.int32), over)

    @property
    def units(self) -> int:
        return self.draws.shape[1]


def statistic(values: np.ndarray, name: str) -> float:
    """One of STATISTICS of float64 [n], n > 0."""
    if name == 'mean':
        return float(values.mean())
    if name == 'mae':
        return float(np.abs(values).mean())
    if name == 'rmse':
        return float(np.sqrt(np.square(values).mean()))
    return float(np.quantile(np.abs(values), _PERCENT[name], method='inverted_cdf'))


def resampled(sample: Sample, name: str, resampling: Resampling) -> np.ndarray:
    """float64 [resamples]: the statistic of every resample; nan where a resample drew no value."""
    if name in _PERCENT:
        return _resampled_percentile(sample, _PERCENT[name], resampling.draws)
    power = {'mean': sample.values, 'mae': np.abs(sample.values), 'rmse': np.square(sample.values)}[name]
    units = resampling.units
    sums = np.bincount(sample.units, weights=power, minlength=units)
    counts = np.bincount(sample.units, minlength=units)
    drawn = (resampling.draws @ counts).astype(np.float64)
    means = np.divide(resampling.draws @ sums, drawn, out=np.full(len(drawn), np.nan), where=drawn > 0)
    return np.sqrt(means) if name == 'rmse' else means


def estimate(sample: Sample, name: str, resampling: Resampling) -> Estimate:
    if not sample.values.size:
        return NOTHING
    value = statistic(sample.values, name)
    low, high = interval(resampled(sample, name, resampling), np.unique(sample.units).size)
    return Estimate(value, low, high, int(sample.values.size))


def interval(values: np.ndarray, units: int) -> tuple[float | None, float | None]:
    """The 95 % percentile interval; none where fewer than two units have anything to say."""
    finite = values[np.isfinite(values)]
    if units < 2 or not finite.size:
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, (tail, 1 - tail))
    return float(low), float(high)


def _resampled_percentile(sample: Sample, part: float, draws: np.ndarray) -> np.ndarray:
    order = np.argsort(np.abs(sample.values), kind='stable')
    order = order[:: max(1, -(-order.size // MOST_VALUES))]
    values, units = np.abs(sample.values[order]), sample.units[order]
    # By unit, how many values are at most as large as each; then the same of every resample. Whole numbers,
    # and small, so float32 is exact.
    within = np.zeros((draws.shape[1], values.size), dtype=np.float32)
    within[units, np.arange(values.size)] = 1
    reached = draws.astype(np.float32) @ np.cumsum(within, axis=1)
    needed = part * reached[:, -1:]
    place = np.minimum((reached < needed).sum(axis=1), values.size - 1)
    return np.where(reached[:, -1] > 0, values[place], np.nan)


def pooled(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Sample:
    """One sample of the parts of all episodes. parts: values and units of each."""
    if not parts:
        return Sample(np.zeros(0), np.zeros(0, dtype=np.int32))
    if len(parts) == 1:
        return Sample(np.asarray(parts[0][0], dtype=np.float64), np.asarray(parts[0][1], dtype=np.int32))
    values, units = zip(*parts, strict=True)
    return Sample(
        np.concatenate(values).astype(np.float64, copy=False),
        np.concatenate(units).astype(np.int32, copy=False),
    )
