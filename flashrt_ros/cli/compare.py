"""Say whether B is worse than A: paired differences with intervals, against thresholds.

    flashrt compare results_a results_b                                     two evaluations of the same bags
    flashrt compare checkpoint_a checkpoint_b --bag BAG --config robot.yaml  two checkpoints
    flashrt compare bf16 fp8 --bag BAG --config robot.yaml                   two precisions
    flashrt compare cpu:fp32 cuda:fp8 --bag BAG --config robot.yaml          against a live FP32 reference

A result is the folder that flashrt evaluate wrote, or the folder of one of its variants. The exit code is 1
if B is worse by more than the thresholds allow and the interval leaves no doubt (--strict: or some doubt).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flashrt_ros.cli.exit_codes import BAD, GOOD
from flashrt_ros.cli.options import add_bag_options, choices_of, latency_list
from flashrt_ros.cli.running import run_all
from flashrt_ros.configuration import load_config, with_values
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.batch.folder import EVALUATION, write_json
from flashrt_ros.evaluation.batch.plan import Variant, plan_jobs
from flashrt_ros.evaluation.batch.summary import (
    VariantResults,
    names_done,
    read_results,
    read_variant,
    write_summary,
)
from flashrt_ros.evaluation.compare import UNCLEAR, WORSE, compare
from flashrt_ros.evaluation.thresholds import Thresholds, load_thresholds

PRECISIONS, DEVICES = ('fp32', 'bf16', 'fp8'), ('cpu', 'cuda')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('a', metavar='A', help='results, checkpoint, or [DEVICE:]PRECISION')
    parser.add_argument('b', metavar='B', help='the same')
    parser.add_argument('--thresholds', type=Path, metavar='YAML', help='by how much B may be worse')
    parser.add_argument('--strict', action='store_true', help='fail if it is unclear whether B is worse')
    parser.add_argument('--out', type=Path, default=Path('comparison'), help='for results (%(default)s)')
    parser.add_argument(
        '--bag', type=Path, action='append', default=[], help='to evaluate A and B on; repeatable'
    )
    parser.add_argument('--config', type=Path, metavar='YAML', help='of the robot')
    parser.add_argument('--latency', type=latency_list, default=[0.0], metavar='MS', help="or 'measured' (0)")
    parser.add_argument('--processes', type=int, metavar='N', help='at once')
    add_bag_options(parser)


def run(arguments: argparse.Namespace) -> int:
    thresholds = load_thresholds(arguments.thresholds) if arguments.thresholds else Thresholds()
    a, b = (_results(word, side, arguments) for word, side in ((arguments.a, 'a'), (arguments.b, 'b')))
    found = compare(a, b, thresholds, (arguments.a, arguments.b))
    # Imported late: it draws, and matplotlib takes a moment.
    from flashrt_ros.evaluation.page.comparison import comparison_text, write_comparison

    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / 'comparison.json', found.as_json())
    write_comparison(arguments.out / 'comparison.html', found, a, b)
    print(comparison_text(found))
    print(f'Written: {arguments.out / "comparison.html"}, {arguments.out / "comparison.json"}')
    bad = found.verdict == WORSE or (arguments.strict and found.verdict == UNCLEAR)
    return BAD if bad else GOOD


def _results(word: str, side: str, arguments: argparse.Namespace) -> VariantResults:
    """Finished results, or those of evaluating what the word names."""
    path = Path(word)
    if (path / EVALUATION).exists() or path.name == EVALUATION:
        found = read_results(path)
        if len(found) != 1:
            raise ConfigError(
                f'it has {len(found)} variants',
                word,
                f'name one: {", ".join(str(path / name) for name in found)}',
            )
        return next(iter(found.values()))
    if (path.parent / EVALUATION).exists() and path.is_dir():
        return read_results(path.parent)[path.name]
    return _evaluated(_variant(word, arguments), side, arguments)


def _variant(word: str, arguments: argparse.Namespace) -> Variant:
    """What a checkpoint's folder or a precision means for this robot."""
    device, _, precision = word.rpartition(':')
    changes: dict[str, str | None]
    if precision in PRECISIONS and device in ('', *DEVICES):
        changes = {'policy.precision': precision, **({'policy.device': device} if device else {})}
    elif (Path(word) / 'config.json').exists():
        changes = {'policy.checkpoint': str(Path(word).resolve())}
    else:
        raise ConfigError(
            'it is neither results, nor a checkpoint, nor a precision',
            word,
            'give a folder that flashrt evaluate wrote, a checkpoint, or a word like cpu:fp32',
        )
    if not arguments.bag or arguments.config is None:
        raise ConfigError('it has not been evaluated yet', word, 'add --bag and --config')
    config = with_values(load_config(arguments.config), changes, source=word)
    return Variant('results', config, arguments.latency[0])


def _evaluated(variant: Variant, side: str, arguments: argparse.Namespace) -> VariantResults:
    folder, choices = arguments.out / side, choices_of(arguments)
    jobs = plan_jobs([variant], arguments.bag, choices, folder)
    failed = run_all(jobs, arguments)
    for name, why in failed.items():
        print(f'{side}/{name}: {why}', file=sys.stderr)
    done = names_done(jobs, failed)
    if not done:
        raise ConfigError('no bag could be evaluated', side, 'see the lines above')
    results = read_variant(folder / variant.name, variant, done[variant.name])
    write_summary(folder, [results], choices, failed)
    return results
