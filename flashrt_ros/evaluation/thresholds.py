"""What is good enough: a YAML of metrics (see `score.scores`) with their limits.

limits:                                  # flashrt evaluate: no metric may be above
  action_error.all.mae: 0.05             # in the metric's unit
  blocked.all.mean: 0.02
compare:                                 # flashrt compare: by how much B may be worse than A
  action_error.all.mae: {share: 0.05}    # of A's figure
  seam.all.p90: {amount: 0.002}          # in the metric's unit
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flashrt_ros.configuration.fields import suggestion
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.score.sample import Estimate
from flashrt_ros.evaluation.score.scores import GROUPS


@dataclass(frozen=True)
class Allowance:
    """How much worse is still as good: `amount` in the metric's unit, and `share` of the other's figure."""

    amount: float = 0.0
    share: float = 0.0

    def of(self, figure: float) -> float:
        return max(self.amount, self.share * abs(figure))


DEFAULT_COMPARE = {
    'action_error.all.mae': Allowance(share=0.05),
    'action_error.all.p90': Allowance(share=0.10),
    'command_error.all.mae': Allowance(share=0.05),
    'consistency.all.mae': Allowance(share=0.10),
    'seam.all.p90': Allowance(share=0.10, amount=0.001),
    'jerk.all.rmse': Allowance(share=0.10),
    'gripper_delay.all.mae': Allowance(share=0.10, amount=0.05),
    'blocked.all.mean': Allowance(amount=0.01),
}
"""What decides unless a YAML says otherwise."""


@dataclass(frozen=True)
class Thresholds:
    """limits: metric -> its largest figure. compare: metric -> what it may be worse by."""

    limits: Mapping[str, float] = field(default_factory=dict)
    compare: Mapping[str, Allowance] = field(default_factory=lambda: DEFAULT_COMPARE)

    def broken(self, metrics: Mapping[str, Estimate]) -> list[str]:
        """Every limit that is not kept, in words. A metric without a value keeps no limit."""
        found = []
        for name, limit in self.limits.items():
            value = metrics[name].value if name in metrics else None
            if value is None:
                found.append(f'{name} has no value, and must be at most {limit:g}')
            elif value > limit:
                found.append(f'{name} is {value:.4g}, and must be at most {limit:g}')
        return found


def load_thresholds(path: Path) -> Thresholds:
    """Raises ConfigError for a file that does not hold what this module's docstring says."""
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(f'it cannot be read ({reason})', str(path), 'give a YAML of thresholds') from None
    if not isinstance(content, dict) or not content or set(content) - {'limits', 'compare'}:
        raise ConfigError(
            "it has other sections than 'limits' and 'compare'", str(path), 'see docs/evaluation.md'
        )
    limits = {name: _number(value, name, path) for name, value in _section(content, 'limits', path)}
    compare = {name: _allowance(value, name, path) for name, value in _section(content, 'compare', path)}
    return Thresholds(limits, compare or DEFAULT_COMPARE)


def _section(content: Mapping[str, Any], name: str, path: Path) -> list[tuple[str, Any]]:
    section = content.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"'{name}' is no mapping of metrics", str(path), 'see docs/evaluation.md')
    for metric in section:
        _check_metric(str(metric), path)
    return list(section.items())


def _check_metric(name: str, path: Path) -> None:
    parts = name.split('.')
    group = GROUPS.get(parts[0])
    if len(parts) != 3 or group is None or parts[2] not in group.statistics:
        known = [f'{key}.all.{statistic}' for key, one in GROUPS.items() for statistic in one.statistics]
        raise ConfigError(
            f"there is no metric '{name}'; {suggestion(name, known)}", str(path), 'correct the name'
        )


def _number(value: Any, name: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ConfigError(f'{value!r} is no limit of {name}', str(path), 'give a number that is not negative')
    return float(value)


def _allowance(value: Any, name: str, path: Path) -> Allowance:
    if not isinstance(value, dict) or not value or set(value) - {'amount', 'share'}:
        raise ConfigError(
            f'{value!r} does not say by how much {name} may be worse', str(path), "give 'amount' or 'share'"
        )
    return Allowance(**{key: _number(number, name, path) for key, number in value.items()})
