"""Is B worse than A? Paired differences of two evaluations of the same bags, and a verdict.

Both are resampled together: the same episodes (or blocks of time of the one episode) are drawn for A and for
B, so that what makes an episode hard counts for both and cancels in the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flashrt_ros.errors import FlashRTError
from flashrt_ros.evaluation.batch.summary import VariantResults
from flashrt_ros.evaluation.replay.episode import Episode
from flashrt_ros.evaluation.score.sample import (
    NOTHING,
    Estimate,
    Resampling,
    Sample,
    estimate,
    interval,
    pooled,
    resampled,
    statistic,
)
from flashrt_ros.evaluation.score.scores import UnitsOf, collect, divide
from flashrt_ros.evaluation.thresholds import Allowance, Thresholds

SAME, BETTER, WORSE, UNCLEAR, NOTHING_TO_SAY = 'same', 'better', 'worse', 'unclear', 'no data'

DIFFERENCE = ('mae', 'p50', 'p99', 'max')
"""Statistics of how far the chunks of B are from those of A."""


class CompareError(FlashRTError):
    """Two evaluations have nothing in common."""


@dataclass(frozen=True)
class Difference:
    """Of one metric. value, low, high: B minus A, positive where B is worse. allowed: how much worse is as
    good.

    verdict: 'worse' if B is worse by more than is allowed and the interval leaves no doubt that it is worse;
    'unclear' if it does; 'better' if the interval leaves no doubt of that; else 'same'.
    """

    metric: str
    of_a: float | None
    of_b: float | None
    value: float | None
    low: float | None
    high: float | None
    allowed: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """name_a, name_b: what was compared. decisive: metrics with a threshold, in their order. all: every
    metric.

    chunks: how far the chunks of B are from those of A by 'JOINT.STATISTIC', rad or m, where both looked at
    the same moments. only_one: episodes that have no counterpart.
    """

    name_a: str
    name_b: str
    episodes: tuple[str, ...]
    only_one: tuple[str, ...]
    over: str
    units: int
    decisive: list[Difference]
    all: list[Difference]
    chunks: dict[str, Estimate]

    @property
    def worse(self) -> list[Difference]:
        return [one for one in self.decisive if one.verdict == WORSE]

    @property
    def unclear(self) -> list[Difference]:
        return [one for one in self.decisive if one.verdict == UNCLEAR]

    @property
    def verdict(self) -> str:
        """Of B, in one word."""
        if self.worse:
            return WORSE
        if self.unclear:
            return UNCLEAR
        return BETTER if any(one.verdict == BETTER for one in self.decisive) else SAME

    def as_json(self) -> dict[str, Any]:
        return {
            'a': self.name_a,
            'b': self.name_b,
            'verdict': self.verdict,
            'episodes': self.episodes,
            'without_counterpart': self.only_one,
            'intervals': f'95 %, paired bootstrap over {self.over}',
            'units': self.units,
            'decisive': [asdict(one) for one in self.decisive],
            'all': [asdict(one) for one in self.all],
            'chunks_of_b_minus_a': {name: asdict(one) for name, one in self.chunks.items()},
        }


def compare(
    a: VariantResults, b: VariantResults, thresholds: Thresholds, names: tuple[str, str] | None = None
) -> Comparison:
    """names: of A and B. Raises CompareError unless they have an episode and the joints in common."""
    name_a, name_b = names or (a.name, b.name)
    by_name_a, by_name_b = ({e.name: e for e in one.episodes} for one in (a, b))
    common = [name for name in by_name_a if name in by_name_b]
    only = tuple(sorted(set(by_name_a) ^ set(by_name_b)))
    if not common:
        raise CompareError(
            f'A has the episodes {", ".join(by_name_a)}, B has {", ".join(by_name_b)}',
            f'{name_a}, {name_b}',
            'evaluate both on the same bags',
        )
    episodes_a, episodes_b = [by_name_a[n] for n in common], [by_name_b[n] for n in common]
    _check_joints(episodes_a[0], episodes_b[0], f'{name_a}, {name_b}')
    resampling, units_of = divide(episodes_a)
    samples_a, samples_b = collect(episodes_a, units_of), collect(episodes_b, units_of)
    shared = [name for name in a.scores.metrics if name in b.scores.metrics]
    allowed = thresholds.compare
    differences = {
        name: _difference(name, samples_a, samples_b, resampling, allowed.get(name, Allowance()))
        for name in {*shared, *allowed}
        if name in shared
    }
    return Comparison(
        name_a,
        name_b,
        tuple(common),
        only,
        resampling.over,
        resampling.units,
        [differences[name] for name in allowed if name in differences],
        [differences[name] for name in shared],
        _chunks(episodes_a, episodes_b, units_of, resampling),
    )


def _check_joints(a: Episode, b: Episode, where: str) -> None:
    if a.joints != b.joints:
        raise CompareError(
            f'A drives {", ".join(a.joints)}, B drives {", ".join(b.joints)}',
            where,
            'compare one robot with itself',
        )


def _difference(
    name: str,
    of_a: Mapping[tuple[str, str], Sample],
    of_b: Mapping[tuple[str, str], Sample],
    resampling: Resampling,
    allowance: Allowance,
) -> Difference:
    group, column, kind = name.split('.')
    a, b = of_a[group, column], of_b[group, column]
    if not a.values.size or not b.values.size:
        return Difference(name, None, None, None, None, None, 0.0, NOTHING_TO_SAY)
    value_a, value_b = statistic(a.values, kind), statistic(b.values, kind)
    drawn = resampled(b, kind, resampling) - resampled(a, kind, resampling)
    low, high = interval(drawn, min(np.unique(a.units).size, np.unique(b.units).size))
    allowed = allowance.of(value_a)
    verdict = judge(value_b - value_a, low, high, allowed)
    return Difference(name, value_a, value_b, value_b - value_a, low, high, allowed, verdict)


def judge(value: float, low: float | None, high: float | None, allowed: float) -> str:
    """See `Difference`. Without an interval the figures alone decide."""
    if value > allowed:
        return WORSE if low is None or low > 0 else UNCLEAR
    if value < 0 and (high is None or high < 0):
        return BETTER
    return SAME


def _chunks(
    a: list[Episode], b: list[Episode], units_of: list[UnitsOf], resampling: Resampling
) -> dict[str, Estimate]:
    """Chunks of both that were computed at the same moment of the bag, row by row."""
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for one, other, units in zip(a, b, units_of, strict=True):
        if one.actions.shape[1:] != other.actions.shape[1:]:
            continue
        _, in_a, in_b = np.intersect1d(one.looked_ns, other.looked_ns, return_indices=True)
        gap = other.actions[in_b] - one.actions[in_a]
        unit = np.broadcast_to(units(one.looked_ns[in_a])[:, None], gap.shape[:2]).ravel()
        for column, joint in enumerate(one.joints):
            parts.setdefault(joint, []).append((gap[..., column].ravel(), unit))
        parts.setdefault('all', []).append((gap.ravel(), np.repeat(unit, gap.shape[2])))
    samples = {joint: pooled(each) for joint, each in parts.items()}
    return {
        f'{joint}.{kind}': estimate(sample, kind, resampling) if sample.values.size else NOTHING
        for joint, sample in samples.items()
        for kind in DIFFERENCE
    }
