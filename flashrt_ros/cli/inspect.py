"""Say what a checkpoint expects or what a bag has, and whether they fit a robot.

    flashrt inspect CHECKPOINT                         views, state, actions, statistics, prompt form
    flashrt inspect BAG                                topics, types, rates, image sizes, joints
    flashrt inspect BAG --config robot.yaml            whether bag, configuration and its checkpoint fit

The exit code is 1 if something does not fit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flashrt_ros.cli.exit_codes import BAD, GOOD
from flashrt_ros.configuration import load_config, with_values
from flashrt_ros.evaluation.inspection import check_fit, inspect_bag, inspect_checkpoint
from flashrt_ros.loading import options_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('path', type=Path, metavar='CHECKPOINT|BAG')
    parser.add_argument('--config', type=Path, metavar='YAML', help='of the robot that it should fit')
    parser.add_argument('--json', action='store_true', help='for machines')


def run(arguments: argparse.Namespace) -> int:
    path, config = arguments.path, load_config(arguments.config) if arguments.config else None
    is_checkpoint = (path / 'config.json').exists() or (path / 'model.safetensors').exists()
    misfits = None
    if is_checkpoint:
        if config is not None:
            config = with_values(config, {'policy.checkpoint': str(path.resolve())}, '--config')
            misfits = check_fit(config, None)
        found = inspect_checkpoint(path, options_of(config) if config and not misfits else None)
    else:
        found = inspect_bag(path)
        misfits = check_fit(config, path) if config else None
    if misfits is not None:
        found['fits'] = not misfits
        found['misfits'] = misfits
    print(json.dumps(found, indent=1) if arguments.json else '\n'.join(_lines(found)))
    return BAD if misfits else GOOD


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    topics = found.get('topics')
    for name, value in found.items():
        if name in ('topics', 'fits', 'misfits') or value is None:
            continue
        label = name.replace('_', ' ')
        if isinstance(value, dict):
            yield from (f'{label + ", " + key:<24} {_shown(item)}' for key, item in value.items())
        else:
            yield f'{label:<24} {_shown(value)}'
    for name, topic in (topics or {}).items():
        rate = '' if topic['rate_hz'] is None else f'{topic["rate_hz"]:8.2f} Hz'
        yield f'{name:<40} {topic["type"]:<36} {topic["messages"]:>7} {rate:>11}  {_content(topic)}'.rstrip()
    if 'fits' in found:
        yield ''
        yield 'FITS' if found['fits'] else 'DOES NOT FIT'
        yield from (f'  {misfit}' for misfit in found['misfits'])


def _content(topic: Mapping[str, Any]) -> str:
    if 'fault' in topic:
        return f'NOT READABLE: {topic["fault"]}'
    if 'size' in topic:
        return f'{topic["size"][0]} x {topic["size"][1]}, {topic["encoding"]}'
    return ', '.join(topic.get('joints', ()))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.2f}'
    if isinstance(value, list):
        return ', '.join(f'{item:.4g}' if isinstance(item, float) else str(item) for item in value) or '-'
    return str(value)
