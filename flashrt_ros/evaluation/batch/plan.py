"""What there is to evaluate: every variant of the configuration with every bag."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from flashrt_ros import __version__
from flashrt_ros.configuration import RobotConfig, leaves, with_values
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.replay.episode import FORMAT

LOCKSTEP = 0.0


@dataclass(frozen=True)
class Variant:
    """A configuration under a name. latency_s: of an inference; None: as long as each takes."""

    name: str
    config: RobotConfig
    latency_s: float | None = LOCKSTEP


@dataclass(frozen=True)
class Choices:
    """How every bag is read. renamed: topic of the configuration -> in the bag. reference: topic, or None to
    find one. topics_only: judge what nodes published into the bag, instead of running the policy. images:
    keep them in the results bag."""

    seed: int = 0
    renamed: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None
    topics_only: bool = False
    images: bool = True


@dataclass(frozen=True)
class Job:
    """One bag under one variant. folder: where its results go. name: of the episode."""

    name: str
    bag: Path
    variant: Variant
    choices: Choices
    folder: Path

    def key(self) -> str:
        """The same for the same work: what is finished under it need not be done again."""
        policy = self.variant.config.policy
        content = {
            'format': FORMAT,
            'version': __version__,
            'config': self.variant.config.model_dump(mode='json'),
            'latency': self.variant.latency_s,
            'bag': state_of(self.bag),
            'checkpoint': [] if self.choices.topics_only else state_of(Path(policy.checkpoint)),
            'choices': {**vars(self.choices), 'renamed': dict(self.choices.renamed)},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def plan_jobs(variants: Sequence[Variant], bags: Sequence[Path], choices: Choices, out: Path) -> list[Job]:
    """Every variant with every bag. Episodes are named after their bags, and numbered where those agree."""
    names = _distinct(bag.resolve().name.removesuffix('.mcap').removesuffix('.db3') for bag in bags)
    return [
        Job(name, bag, variant, choices, out / variant.name / name)
        for variant in variants
        for name, bag in zip(names, bags, strict=True)
    ]


def make_variants(
    configs: Mapping[str, RobotConfig],
    settings: Mapping[str, Sequence[Any]],
    latencies_s: Sequence[float | None] = (LOCKSTEP,),
) -> list[Variant]:
    """All combinations. configs: name -> configuration. settings: dotted key -> values to try.

    A variant's name tells what distinguishes it. Raises ConfigError as `with_values`.
    """
    variants = []
    for name, config in configs.items():
        for values in product(*settings.values()):
            chosen = dict(zip(settings, values, strict=True))
            changed = with_values(config, chosen, source=name) if chosen else config
            varied = [_word(key, chosen[key]) for key, options in settings.items() if len(options) > 1]
            for latency in latencies_s:
                told = [_latency_word(latency)] if len(latencies_s) > 1 or latency != LOCKSTEP else []
                variants.append(Variant('-'.join([name, *varied, *told]), changed, latency))
    names = _distinct(variant.name for variant in variants)
    return [Variant(name, v.config, v.latency_s) for name, v in zip(names, variants, strict=True)]


def strategy_choices(config: RobotConfig) -> tuple[str, tuple[str, ...]]:
    """The dotted key under which this version's chunk strategies are chosen, and their names; or ('', ())."""
    for leaf in leaves(config):
        if leaf.key.split('.')[-1] == 'strategy' and leaf.choices:
            return leaf.key, leaf.choices
    return '', ()


def strategy_setting(config: RobotConfig, names: Sequence[str]) -> dict[str, Sequence[str]]:
    """The setting for `make_variants` that tries these strategies. Raises ConfigError for an unknown one."""
    key, known = strategy_choices(config)
    for name in names:
        if name not in known:
            there = (
                f'choose one of {", ".join(known)}' if known else 'leave it out: this version has only one'
            )
            raise ConfigError(f"there is no strategy '{name}'", '--strategy', there)
    return {key: names}


def _word(key: str, value: Any) -> str:
    last = key.split('.')[-1]
    text = Path(value).name if last == 'checkpoint' else str(value)
    return text if last in ('strategy', 'precision', 'device', 'checkpoint') else f'{last}={text}'


def _latency_word(latency_s: float | None) -> str:
    if latency_s is None:
        return 'measured'
    return f'{latency_s * 1e3:g}ms' if latency_s else 'lockstep'


def _distinct(names: Iterable[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f'{name}-{seen[name]}')
    return result


def state_of(path: Path) -> list[Any]:
    """Names, sizes and times of change of all files of a bag or checkpoint."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob('*') if file.is_file())
    stats = [(file, file.stat()) for file in files]
    return [[str(path.resolve())], *([file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats)]
