"""How often, how fast and how smoothly: figures of a condition with intervals; two on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashrt_ros.evaluation.closed_loop.run import Result
from flashrt_ros.evaluation.score import sample
from flashrt_ros.evaluation.score.sample import Estimate

Z95 = 1.959964
"""97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Summary:
    """Of one condition. success: share, Wilson interval. The others with bootstrap intervals over episodes.

    seconds: median time to success of those that succeeded. jerk, seam: means over episodes.
    """

    name: str
    results: tuple[Result, ...]
    success: Estimate
    seconds: Estimate
    jerk: Estimate
    seam: Estimate
    blocked: Estimate
    inference_ms: Estimate

    @classmethod
    def of(cls, name: str, results: Sequence[Result]) -> Summary:
        ordered = tuple(sorted(results, key=lambda result: result.seed))
        successes = [result for result in ordered if result.succeeded]

        def mean(field: str) -> Estimate:
            return bootstrap([getattr(result, field) for result in ordered], np.mean)

        return cls(
            name,
            ordered,
            wilson(len(successes), len(ordered)),
            bootstrap([result.seconds or 0.0 for result in successes], np.median),
            mean('jerk'),
            mean('seam'),
            mean('blocked'),
            bootstrap([result.inference_ms for result in ordered], np.median),
        )


@dataclass(frozen=True)
class Paired:
    """Success of `name` minus that of `reference` on the seeds that both ran; bootstrap interval over seeds.

    gained, lost: seeds that only the one, or only the other solved. p: McNemar's exact test, two-sided.
    """

    name: str
    reference: str
    difference: Estimate
    gained: int
    lost: int
    p: float

    @classmethod
    def of(cls, one: Summary, reference: Summary) -> Paired:
        other = {result.seed: result.succeeded for result in reference.results}
        pairs = [(result.succeeded, other[result.seed]) for result in one.results if result.seed in other]
        gained = sum(mine and not theirs for mine, theirs in pairs)
        lost = sum(theirs and not mine for mine, theirs in pairs)
        differences = [float(mine) - float(theirs) for mine, theirs in pairs]
        return cls(
            one.name, reference.name, bootstrap(differences, np.mean), gained, lost, mcnemar(gained, lost)
        )


def wilson(successes: int, count: int) -> Estimate:
    """Share with its 95 % score interval (Wilson 1927), which holds near 0 and 1 and for few episodes."""
    if count == 0:
        return sample.NOTHING
    share, square = successes / count, Z95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), count)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of so uneven a split of the pairs that differ, if both were equally good."""
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1)) / 2**count
    return min(1.0, 2 * tail)


def bootstrap(values: Sequence[float], statistic: object) -> Estimate:
    """The statistic with its 95 % percentile interval over draws of the values."""
    if not values:
        return sample.NOTHING
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(sample.SEED)
    drawn = array[rng.integers(0, len(array), (sample.RESAMPLES, len(array)))]
    found = statistic(drawn, axis=1)  # type: ignore[operator]
    low, high = np.percentile(found, (2.5, 97.5))
    return Estimate(float(statistic(array)), float(low), float(high), len(array))  # type: ignore[operator]
