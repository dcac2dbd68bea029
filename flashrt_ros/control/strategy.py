"""How chunks follow each other, by name; and whether a policy can do it."""

from __future__ import annotations

from dataclasses import dataclass

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control.timeline import Combine
from flashrt_ros.errors import ConfigError
from flashrt_ros.policy import PolicyInfo


@dataclass(frozen=True)
class Strategy:
    """combine: what the executor does with chunks. guidance: the policy's method, or ''.

    waits: the next inference waits until the chunk is over. future: plan from where the robot will be.
    """

    combine: Combine
    guidance: str = ''
    waits: bool = False
    future: bool = False


STRATEGIES = {
    'sync': Strategy(Combine.APPEND, waits=True),
    'async': Strategy(Combine.REPLACE),
    'ensemble': Strategy(Combine.AVERAGE),
    'rtc': Strategy(Combine.REPLACE, guidance='exact'),
    'rtc_identity': Strategy(Combine.REPLACE, guidance='identity'),
    'rtc_prefix': Strategy(Combine.REPLACE, guidance='prefix'),
    'vlash': Strategy(Combine.REPLACE, future=True),
}
"""executor.strategy -> what it means. docs/execution.md has sources and measurements."""


def check_strategy(config: RobotConfig, info: PolicyInfo) -> None:
    """Raise ConfigError if this policy, on this backend, cannot do the strategy that was chosen."""
    name, where = config.executor.strategy, 'executor.strategy'
    method = STRATEGIES[name].guidance
    refusal = (
        info.guidance_refusals.get(method, f"the backend knows no guidance '{method}'") if method else ''
    )
    if refusal:
        raise ConfigError(f"'{info.name}' cannot do {name}: {refusal}", where, _others(info))
    rows = config.executor.execution_rows
    if rows is not None and rows > info.horizon:
        raise ConfigError(
            f'{rows} rows, but a chunk has {info.horizon}', 'executor.execution_rows', 'lower or remove it'
        )
    delay, trained = config.executor.delay_rows, info.trained_prefix
    if method == 'prefix' and delay is not None and delay > trained:
        raise ConfigError(
            f'{delay} rows, but the checkpoint was trained with a prefix of {trained}',
            'executor.delay_rows',
            'lower or remove it',
        )
    period_rows = config.rates.action_rate_hz / config.rates.chunk_rate_hz
    if method and delay is not None and not delay <= period_rows <= info.horizon - delay:
        raise ConfigError(
            f'a delay of {delay} rows does not fit {period_rows:.3g} rows between inferences '
            f'of {info.horizon}: real-time chunking needs delay <= rows <= horizon - delay',
            'executor.delay_rows',
            'lower it, or change rates.chunk_rate_hz',
        )


def _others(info: PolicyInfo) -> str:
    able = [
        name for name, strategy in STRATEGIES.items() if not info.guidance_refusals.get(strategy.guidance, '')
    ]
    return f'choose one of {", ".join(name for name in able if name != "vlash")}'
