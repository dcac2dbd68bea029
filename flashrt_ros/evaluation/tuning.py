"""Which rate, strategy and parameters suit a bag and this machine: what to try, and the score that decides.

The score compares a trial with the configuration as it was given, which has 1.0; less is better:

    0.6 * command_error.all.mae / its own   +   0.25 * seam.all.p90 / its own   +   0.15 * jerk.all.rmse / its
    own + 5 * silent.all.mean, the part of the time without a command

Trials run with one latency for all, the 90th percentile of what was measured on this machine first: so they
differ by what is tried, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashrt_ros.configuration import RobotConfig, leaves
from flashrt_ros.evaluation.batch.plan import strategy_choices
from flashrt_ros.evaluation.score.scores import Scores

WEIGHTS = {'command_error.all.mae': 0.60, 'seam.all.p90': 0.25, 'jerk.all.rmse': 0.15}
SILENCE, SILENCE_WEIGHT = 'silent.all.mean', 5.0

RATE = 'rates.chunk_rate_hz'
RATES = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0)

REFINED: dict[str, tuple[Any, ...]] = {
    'executor.execution_rows': (0.25, 0.5, 0.75, 1.0),
    'executor.ensemble_decay': (-0.1, 0.0, 0.01, 0.1),
    'executor.guidance_schedule': ('exp', 'linear', 'ones'),
    'executor.guidance_clip': (2.0, 5.0, 10.0),
    'executor.interpolation': ('linear', 'step'),
}
"""Parameter -> values tried with the best of rates and strategies. execution_rows: parts of the horizon. Only
the keys that this version's configuration has are tried."""

ONLY_FOR = {
    'executor.execution_rows': ('sync',),
    'executor.ensemble_decay': ('ensemble',),
    'executor.guidance_schedule': ('rtc', 'rtc_identity'),
    'executor.guidance_clip': ('rtc', 'rtc_identity'),
}
"""Parameters that mean something to some strategies only."""


@dataclass
class Trial:
    """changes: dotted key -> value. score: None where it could not be tried, and `why` then says so.

    figures: metric -> value of those that the score is made of.
    """

    name: str
    changes: dict[str, Any]
    score: float | None = None
    why: str = ''
    figures: dict[str, float | None] = field(default_factory=dict)


def rates_to_try(config: RobotConfig, horizon: int, latency_s: float) -> list[float]:
    """Chunk rates that this machine keeps, at which a chunk lasts until the next, and not the configured
    one."""
    rates, length_s = config.rates, horizon / config.rates.action_rate_hz
    highest = min(rates.control_rate_hz, 1.0 / latency_s if latency_s > 0 else rates.control_rate_hz)
    fitting = [rate for rate in RATES if 1.0 / length_s < rate <= highest]
    # Ever more chunks cost ever more time to try and change little: four rates show the way.
    step = max(1, -(-len(fitting) // 4))
    return [rate for rate in fitting[::-1][::step][::-1] if rate != rates.chunk_rate_hz]


def first_trials(
    config: RobotConfig, rates: Sequence[float], strategies: Sequence[str]
) -> list[dict[str, Any]]:
    """Every strategy with every rate; the configuration's own is not among them, it is the baseline."""
    key, known = strategy_choices(config)
    names = list(strategies) or list(known)
    own = {leaf.key: leaf.value for leaf in leaves(config)}.get(key)
    every = [config.rates.chunk_rate_hz, *rates]
    changes = (
        [{key: name, RATE: rate} for name in names for rate in every] if key else [{RATE: r} for r in every]
    )
    return [c for c in changes if (c.get(key), c[RATE]) != (own, config.rates.chunk_rate_hz)]


def refinements(config: RobotConfig, horizon: int) -> list[tuple[str, Any]]:
    """(dotted key, value) to try with this configuration, one at a time."""
    there = {leaf.key: leaf.value for leaf in leaves(config)}
    strategy = there.get(strategy_choices(config)[0])
    found = []
    for key, values in REFINED.items():
        if key not in there or (key in ONLY_FOR and strategy not in ONLY_FOR[key]):
            continue
        if key == 'executor.execution_rows':
            values = tuple(max(1, round(part * horizon)) for part in values)
        found += [(key, value) for value in values if value != there[key]]
    return found


def score_of(scores: Scores, baseline: Scores) -> tuple[float | None, dict[str, float | None]]:
    """The score of a trial, or None without commands, and the figures that it is made of."""
    names = (*WEIGHTS, SILENCE)
    figures = {name: _value(scores, name) for name in names}
    total = SILENCE_WEIGHT * (figures[SILENCE] or 0.0)
    for name, weight in WEIGHTS.items():
        value, own = figures[name], _value(baseline, name)
        if value is None:
            return None, figures
        # Where the baseline is perfect, so is whoever is perfect too.
        total += weight * (value / own if own else 1.0 + value)
    return total, figures


def _value(scores: Scores, name: str) -> float | None:
    return scores.metrics[name].value if name in scores.metrics else None


def best_of(trials: Sequence[Trial]) -> Trial:
    """The lowest score; of equals, the first."""
    tried = [trial for trial in trials if trial.score is not None]
    return min(tried, key=lambda trial: trial.score or 0.0)


def merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as plain data with values at dotted keys replaced."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in data.items()}
    for key, value in changes.items():
        section, _, name = key.partition('.')
        result[section] = {**result.get(section, {}), name: value}
    return result
