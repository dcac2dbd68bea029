"""Replay bags into a policy, through the same ingest, policy and control code as the nodes, and judge it.

    flashrt evaluate BAG... --config robot.yaml --out results

Reads rosbag2 (MCAP and sqlite3, split, zstd-compressed, without metadata.yaml) without ROS. In lockstep, the
default, a chunk is there at the moment of its observation, and the same bags and seed give the same bytes.
With --latency the chunk comes late by as much, or by what each inference takes here ('measured'), and ticks
are missed as they would be on the robot. Several values of one option are all tried.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flashrt_ros.cli.exit_codes import BAD, GOOD, PARTLY
from flashrt_ros.cli.options import add_variant_options, choices_of, variants_of
from flashrt_ros.cli.running import run_all
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.batch.plan import plan_jobs
from flashrt_ros.evaluation.batch.summary import names_done, read_variant, write_summary
from flashrt_ros.evaluation.page.text import evaluation_text
from flashrt_ros.evaluation.thresholds import Thresholds, load_thresholds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('bags', nargs='+', type=Path, metavar='BAG', help='folder or file of a rosbag2')
    parser.add_argument(
        '--out', type=Path, default=Path('evaluation'), help='folder of results (%(default)s)'
    )
    add_variant_options(parser)
    parser.add_argument('--thresholds', type=Path, metavar='YAML', help='limits that the metrics must keep')
    parser.add_argument('--no-report', action='store_true', help='leave out report.html and plots')
    parser.add_argument('--no-images', action='store_true', help='leave the pictures out of the results bags')
    parser.add_argument('--again', action='store_true', help='evaluate finished episodes again')
    parser.add_argument(
        '--processes', type=int, metavar='N', help='at once (default: what cores or GPUs take)'
    )
    parser.add_argument('--ray', action='store_true', help='on the machines of a Ray cluster')
    parser.add_argument(
        '--ray-address', metavar='ADDRESS', help="of the cluster, or 'auto' (default: a new one here)"
    )
    parser.add_argument(
        '--from-topics',
        action='store_true',
        help='judge the chunks and commands that nodes published into the bag, without running the policy',
    )


def run(arguments: argparse.Namespace) -> int:
    thresholds = load_thresholds(arguments.thresholds) if arguments.thresholds else Thresholds()
    variants, choices = variants_of(arguments), choices_of(arguments)
    jobs = plan_jobs(variants, arguments.bags, choices, arguments.out)
    failed = run_all(jobs, arguments)
    done = names_done(jobs, failed)
    results = [
        read_variant(arguments.out / variant.name, variant, done[variant.name])
        for variant in variants
        if variant.name in done
    ]
    for name, why in failed.items():
        print(f'{name}: {why}', file=sys.stderr)
    if not results:
        raise ConfigError(f'none of {len(jobs)} episodes could be evaluated', 'bags', 'see the lines above')
    write_summary(arguments.out, results, choices, failed)
    broken = {one.name: thresholds.broken(one.scores.metrics) for one in results}
    print(evaluation_text(results, broken, failed))
    if not arguments.no_report:
        from flashrt_ros.evaluation.page.report import write_report

        print(f'Written: {write_report(arguments.out, results, broken, failed)}')
    if any(broken.values()):
        return BAD
    return PARTLY if failed else GOOD
