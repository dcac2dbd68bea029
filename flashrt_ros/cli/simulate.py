"""Let a policy do its task on a simulated robot, and say how often, how fast and how smoothly it succeeds.

    flashrt simulate --config config/so101_simulation.yaml --episodes 50 --out simulation

The robot's messages go through the same ingest, policy and control code as the nodes, on simulated time: the
same seeds give the same episodes. Several values of one option are all tried, on the same seeds:

    --backend cpu:fp32,cuda:bf16,cuda:fp8          devices and precisions, compared seed by seed
    --strategy sync,async,rtc --latency 0,50,100,200
    --fault none,drop=0.3,delay=100,quality=10,brightness=0.5,tilt=10

Needs the packages of requirements-sim.txt, and an OpenGL library: libosmesa6, or EGL on a GPU.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path

from tqdm import tqdm

from flashrt_ros.cli.exit_codes import BAD, GOOD
from flashrt_ros.cli.options import add_variant_options, variants_of
from flashrt_ros.configuration import with_values
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.batch.plan import Variant
from flashrt_ros.evaluation.closed_loop.faults import parse_fault
from flashrt_ros.simulation.robots import ROBOTS, require_mujoco

FIRST_SEED = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_variant_options(parser, bags=False)
    parser.add_argument('--robot', choices=ROBOTS, default='so101', help='simulated (%(default)s)')
    parser.add_argument(
        '--episodes', type=_count, default=50, metavar='N', help='of every condition (%(default)s)'
    )
    parser.add_argument(
        '--first-seed', type=int, default=FIRST_SEED, metavar='N', help='of N, N + 1, ... (%(default)s)'
    )
    parser.add_argument(
        '--limit', type=float, default=15.0, metavar='S', help='longest simulated time (%(default)s)'
    )
    parser.add_argument(
        '--backend',
        type=_words,
        default=[],
        metavar='D:P[,D:P]',
        help='devices with precisions, such as cuda:fp8',
    )
    parser.add_argument(
        '--fault', type=_words, default=['none'], metavar='F[,F]', help='of the cameras; see above'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('simulation'), help='folder of results (%(default)s)'
    )
    parser.add_argument('--bags', action='store_true', help='record every episode as a bag as well')
    parser.add_argument('--processes', type=_count, default=1, metavar='N', help='at once (%(default)s)')
    parser.add_argument(
        '--at-least', type=float, metavar='SHARE', help='exit with 1 below this share of successes'
    )


def run(arguments: argparse.Namespace) -> int:
    require_mujoco()
    from flashrt_ros.evaluation.closed_loop.report import write_results
    from flashrt_ros.evaluation.closed_loop.run import Condition, Result, Trial, run_trials
    from flashrt_ros.evaluation.closed_loop.score import Paired, Summary
    from flashrt_ros.evaluation.closed_loop.text import summary_text

    faults = [parse_fault(word) for word in arguments.fault]
    variants = [changed for one in variants_of(arguments) for changed in _on_backends(one, arguments.backend)]
    conditions = [
        Condition('-'.join(word for word in (variant.name, fault.name) if word), variant, fault)
        for variant, fault in product(variants, faults)
    ]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.episodes)
    trials = [
        Trial(one, seed, arguments.robot, arguments.limit, arguments.out / one.name, arguments.bags)
        for one in conditions
        for seed in seeds
    ]
    results: dict[str, list[Result]] = defaultdict(list)
    with tqdm(total=len(trials), unit='episode', disable=not sys.stderr.isatty()) as bar:
        for trial, result in run_trials(trials, arguments.processes):
            name = trial.condition.name
            results[name].append(result)
            bar.set_postfix_str(f'{name}: {sum(r.succeeded for r in results[name])}/{len(results[name])}')
            bar.update()
    summaries = [Summary.of(one.name, results[one.name]) for one in conditions]
    pairs = [Paired.of(one, summaries[0]) for one in summaries[1:]]
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(['flashrt', *sys.argv[1:]])
    page = write_results(arguments.out, conditions, summaries, pairs, command)
    print(summary_text(summaries, pairs))
    print(f'Written: {page}')
    worst = min(one.success.value or 0.0 for one in summaries)
    return BAD if arguments.at_least is not None and worst < arguments.at_least else GOOD


def _on_backends(variant: Variant, backends: list[str]) -> list[Variant]:
    """The variant on every backend; as it is where none is named. Raises ConfigError."""
    if not backends:
        return [variant]
    found = []
    for backend in backends:
        device, colon, precision = backend.partition(':')
        if not colon:
            raise ConfigError(f"'{backend}' is no DEVICE:PRECISION", '--backend', 'write as in cuda:fp8')
        values = {'policy.device': device, 'policy.precision': precision}
        name = f'{variant.name}-{device}-{precision}' if len(backends) > 1 else variant.name
        found.append(Variant(name, with_values(variant.config, values, '--backend'), variant.latency_s))
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(',') if word.strip()]


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{number} is not at least 1')
    return number
