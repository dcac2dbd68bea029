"""Measure the activation scales that fp8 needs on bags, and how accurate fp8 then is.

    flashrt calibrate BAG... --config robot.yaml

Picks observations that are as different as the bags allow, measures the range of what enters every product
(its largest magnitude, or a percentile, and that of each flow step), and writes flashrt_calibration.json
beside the checkpoint, with the checkpoint's fingerprint. Then fp8 is compared with bf16 and with fp32 on
observations that were not used. Needs an NVIDIA GPU that has fp8.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flashrt_ros.cli.exit_codes import GOOD
from flashrt_ros.cli.options import renamed_of
from flashrt_ros.configuration import RobotConfig, load_config, with_values
from flashrt_ros.engine.calibration.ranges import AMAX, METHODS
from flashrt_ros.engine.cuda.device import FP8_CAPABILITY, find_gpu, require_capability
from flashrt_ros.evaluation.diverse import Chosen, choose_observations
from flashrt_ros.evaluation.precision import Distance, distance, predict
from flashrt_ros.loading import options_of

FP32_PARAMETERS = 400e6
"""A larger policy takes minutes for one inference in fp32 on a CPU: its reference is left out unless asked
for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('bags', nargs='+', type=Path, metavar='BAG')
    parser.add_argument('--config', type=Path, required=True, metavar='YAML', help='of the robot')
    parser.add_argument('--checkpoint', type=Path, metavar='FOLDER', help="instead of the configuration's")
    parser.add_argument('--count', type=int, default=32, help='observations to calibrate on (%(default)s)')
    parser.add_argument('--held-out', type=int, default=16, help='observations to test on (%(default)s)')
    parser.add_argument('--method', choices=METHODS, default=AMAX, help='%(default)s by default')
    parser.add_argument(
        '--percentile', type=float, default=99.999, metavar='P', help='%(default)s by default'
    )
    parser.add_argument(
        '--fp32', action='store_true', help='compare with fp32 on the CPU however long it takes'
    )
    parser.add_argument('--rename', action='append', default=[], metavar='TOPIC:=NAME', help='in the bags')
    parser.add_argument('--json', action='store_true', help='for machines')


def run(arguments: argparse.Namespace) -> int:
    # First of all: nobody wants to wait for bags to be read to learn that the machine has no GPU.
    require_capability(find_gpu(), FP8_CAPABILITY, 'calibration for fp8')
    config = load_config(arguments.config)
    if arguments.checkpoint:
        config = with_values(
            config, {'policy.checkpoint': str(arguments.checkpoint.resolve())}, '--checkpoint'
        )
    renamed = renamed_of(arguments.rename)
    chosen = choose_observations(arguments.bags, config, renamed, arguments.count, arguments.held_out)
    path, about = _calibrate(config, chosen, arguments)
    accuracy = _accuracy(config, chosen, arguments.fp32)
    found = {'written': str(path), **about, 'held_out': {name: asdict(one) for name, one in accuracy.items()}}
    print(json.dumps(found, indent=1) if arguments.json else _text(found, accuracy, config.joint_names))
    return GOOD


def _calibrate(
    config: RobotConfig, chosen: Chosen, arguments: argparse.Namespace
) -> tuple[Path, dict[str, Any]]:
    from flashrt_ros.engine.calibration.measure import measure_checkpoint
    from flashrt_ros.engine.calibration.scales import store

    checkpoint = Path(config.policy.checkpoint)
    ranges, key = measure_checkpoint(checkpoint, chosen.calibration, options_of(config))
    scales = ranges.scales(arguments.method, arguments.percentile)
    about = {
        'method': arguments.method,
        'percentile': arguments.percentile if arguments.method != AMAX else None,
        'bags': [str(bag) for bag in arguments.bags],
        'moments': chosen.moments,
        'amax': {name: ranges.amax(name) for name in ranges.names},
        'p99.999': {name: ranges.percentile(name, 99.999) for name in ranges.names},
        'amax_by_flow_step': {n: ranges.amax_by_step(n) for n in ranges.names if ranges.amax_by_step(n)},
    }
    return store(checkpoint, key, scales, len(chosen.calibration), about), about


def _accuracy(config: RobotConfig, chosen: Chosen, fp32: bool) -> dict[str, Distance]:
    """'A against B' -> distance, on the held-out observations."""
    from flashrt_ros.models.checkpoint import open_checkpoint
    from flashrt_ros.models.tensors import parameter_count

    fp8 = predict(config, chosen.held_out, 'cuda', 'fp8')
    bf16 = predict(config, chosen.held_out, 'cuda', 'bf16')
    found = {'fp8 against bf16': distance(fp8, bf16)}
    spec = open_checkpoint(Path(config.policy.checkpoint), options_of(config)).spec
    if fp32 or parameter_count(spec) <= FP32_PARAMETERS:
        exact = predict(config, chosen.held_out, 'cpu', 'fp32')
        found |= {'fp8 against fp32': distance(fp8, exact), 'bf16 against fp32': distance(bf16, exact)}
    return found


def _text(found: dict[str, Any], accuracy: dict[str, Distance], joints: tuple[str, ...]) -> str:
    lines = [f'{len(found["amax"])} scales by {found["method"]}, from {found["moments"]} moments of the bags']
    spread = [max(steps) / max(min(steps), 1e-9) for steps in found['amax_by_flow_step'].values()]
    if spread:
        usual, most = np.median(spread), max(spread)
        lines.append(f'over the flow steps a range changes {usual:.2f}-fold (median), {most:.1f} at most')
    columns = (*joints, 'all')
    for name, one in accuracy.items():
        lines += ['', f'{name}, held out [mrad or mm]; worst cosine {one.cosine:.6f}']
        lines.append(f'{"":<20}{"mean":>10}{"p99":>10}{"largest":>10}')
        rows = zip(columns, one.mae, one.p99, one.largest, strict=True)
        lines += [
            f'{label:<20}{mae * 1e3:>10.2f}{p99 * 1e3:>10.2f}{top * 1e3:>10.2f}'
            for label, mae, p99, top in rows
        ]
    if 'fp8 against fp32' not in accuracy:
        lines.append('\nfp32 on the CPU was left out for the size of this policy: --fp32 adds it')
    return '\n'.join([*lines, '', f'Written: {found["written"]}'])
