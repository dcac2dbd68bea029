"""Options that several subcommands share: which configuration, policy, latency and seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flashrt_ros.configuration import RobotConfig, load_config, with_values
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.batch.plan import LOCKSTEP, Choices, Variant, make_variants, strategy_setting

MEASURED = 'measured'


def add_variant_options(parser: argparse.ArgumentParser, bags: bool = True) -> None:
    """bags: with those of how bags are read."""
    parser.add_argument(
        '--config',
        type=Path,
        action='append',
        required=True,
        metavar='YAML',
        help='of the robot; repeatable',
    )
    parser.add_argument('--checkpoint', action='append', default=[], metavar='FOLDER', help='may be repeated')
    parser.add_argument('--device', choices=('cpu', 'cuda'))
    parser.add_argument('--precision', type=_words, default=[], metavar='P[,P]', help='fp32, bf16 or fp8')
    parser.add_argument('--strategy', type=_words, default=[], metavar='S[,S]', help='of executing chunks')
    parser.add_argument(
        '--latency',
        type=latency_list,
        default=[LOCKSTEP],
        metavar='MS[,MS]',
        help="or 'measured' (default: 0, lockstep)",
    )
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='KEY=VALUE[,VALUE]',
        help='any value of the configuration',
    )
    if bags:
        add_bag_options(parser)


def add_bag_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--seed', type=int, default=0, help='of the starting noise (%(default)s)')
    parser.add_argument(
        '--rename',
        action='append',
        default=[],
        metavar='TOPIC:=NAME',
        help='in the bags',
    )
    parser.add_argument('--reference', metavar='TOPIC', help='of the recorded commands (default: found)')


def variants_of(arguments: argparse.Namespace) -> list[Variant]:
    """Every combination of what was asked for. Raises ConfigError."""
    configs: dict[str, RobotConfig] = {}
    for path in arguments.config:
        config = load_config(path)
        if arguments.device:
            fresh = {'policy.precision': None} if arguments.device != config.policy.device else {}
            config = with_values(config, {'policy.device': arguments.device, **fresh}, '--device')
        configs[_free_name(path.stem, configs)] = config
    settings: dict[str, Sequence[Any]] = {}
    if arguments.checkpoint:
        settings['policy.checkpoint'] = [str(Path(folder).resolve()) for folder in arguments.checkpoint]
    if arguments.precision:
        settings['policy.precision'] = arguments.precision
    if arguments.strategy:
        settings |= strategy_setting(next(iter(configs.values())), arguments.strategy)
    for assignment in arguments.set:
        key, equals, values = assignment.partition('=')
        if not equals:
            raise ConfigError(f"'{assignment}' is no KEY=VALUE", '--set', 'write as in policy.steps=5')
        settings[key] = [_value(word) for word in values.split(',')]
    return make_variants(configs, settings, arguments.latency)


def choices_of(arguments: argparse.Namespace, images: bool = True) -> Choices:
    return Choices(
        seed=arguments.seed,
        renamed=renamed_of(arguments.rename),
        reference=arguments.reference,
        topics_only=getattr(arguments, 'from_topics', False),
        images=images and not getattr(arguments, 'no_images', False),
    )


def renamed_of(pairs: Sequence[str]) -> dict[str, str]:
    """['/a:=/b'] -> {'/a': '/b'}. Raises ConfigError."""
    renamed = {}
    for pair in pairs:
        old, separator, new = pair.partition(':=')
        if not (separator and old and new):
            raise ConfigError(f"'{pair}' is no TOPIC:=NAME", '--rename', 'write as in /cam:=/camera/front')
        renamed[old] = new
    return renamed


def latency_list(text: str) -> list[float | None]:
    """'0,50,measured' [ms] -> [0.0, 0.05, None] [s]."""
    found: list[float | None] = []
    for word in _words(text):
        if word == MEASURED:
            found.append(None)
            continue
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 60_000:
            raise argparse.ArgumentTypeError(f"'{word}' is neither milliseconds nor '{MEASURED}'")
        found.append(value / 1e3)
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(',') if word.strip()]


def _value(word: str) -> Any:
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def _free_name(name: str, taken: dict[str, RobotConfig]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f'{name}-{number}', number + 1
    return free
