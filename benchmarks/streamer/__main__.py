"""How punctually the streamer sends 500 commands a second, alone and beside busy processes.

usage: python -m benchmarks.streamer [--busy 0 2 4] [--seconds 10] [--rounds 3] [--against TREE]
       [--with 'scheduling.streamer_priority:=50' ...] [--always KEY:=VALUE ...]
       [--output-type joint_trajectory] [--joint-rate 200] [--chunk-rate 10]

The streamer is the real process with seven joints; another process sends it chunks and joint states. Lateness
is that of the moment at which a command is written, as its writer stamps it. Variants take turns, because
the machine may have other work: this tree; with `--against` that of another checkout; and, for each `--with`,
this tree with other parameters. `--always` gives parameters to all of them. 'a timer alone' is a process that
only waits for the same deadlines: what is late there is this machine's doing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.e2e.machine import ROOT, describe
from benchmarks.streamer.setting import write_robot
from benchmarks.streamer.timer import bare_timer
from benchmarks.streamer.trial import Found, Variant, run

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
HEAD = (
    *('busy processes', 'variant', *(f'p{p:g} [ms]' for p in PERCENTILES), 'p99 of the rounds [ms]'),
    *('commands/s', 'CPU [us/command]'),
)


def main() -> None:
    arguments = _parse()
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(50 + os.getpid() % 50))
    always = tuple(arguments.always)
    variants = [
        Variant('this', ROOT, always),
        *(Variant(one, ROOT, (*always, *one.split())) for one in arguments.extra),
    ]
    if arguments.against:
        variants.insert(0, Variant('before', arguments.against.resolve(), always))
    print(json.dumps(describe('cpu')), flush=True)
    print(f'| {" | ".join(HEAD)} |\n|{"-|" * len(HEAD)}', flush=True)
    with tempfile.TemporaryDirectory() as name:
        config = write_robot(Path(name), arguments.output_type)
        for busy in arguments.busy:
            found: dict[str, list[Found]] = defaultdict(list)
            for _ in range(arguments.rounds):
                for variant in variants:
                    found[variant.name].append(
                        run(
                            variant,
                            config,
                            arguments.output_type,
                            arguments.joint_rate,
                            arguments.chunk_rate,
                            busy,
                            arguments.seconds,
                            arguments.logs or Path(name),
                        )
                    )
            floor = [bare_timer(busy, arguments.seconds) for _ in range(arguments.rounds)]
            print(row(busy, 'a timer alone', floor), flush=True)
            for variant in variants:
                print(row(busy, variant.name, found[variant.name]), flush=True)
    print(f'load at the end: {os.getloadavg()[0]:.1f}')


def row(busy: int, name: str, rounds: list[Found]) -> str:
    """A line of the table, over all rounds of one variant; p99 of each on its own, too: least, median, most.
    Beside busy processes rounds differ by a factor of ten and more, and the worst decides what all have."""
    late = np.percentile(np.concatenate([one.late_ns for one in rounds]) * 1e-6, PERCENTILES)
    each = np.percentile([np.percentile(one.late_ns, 99) * 1e-6 for one in rounds], (0, 50, 100))
    rate = float(np.mean([one.rate_hz for one in rounds]))
    cpu = float(np.mean([one.cpu_s for one in rounds]))
    shown = (*(f'{one:.3f}' for one in late), ' / '.join(f'{one:.3f}' for one in each))
    cells = (str(busy), name, *shown, f'{rate:.1f}', f'{cpu * 1e6:.0f}')
    return f'| {" | ".join(cells)} |'


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--busy', nargs='+', type=int, default=[0, 2, 4], help='processes that never wait')
    parser.add_argument('--seconds', type=float, default=10.0, help='of each trial (%(default)g)')
    parser.add_argument('--rounds', type=int, default=3, help='trials of each variant (%(default)s)')
    parser.add_argument('--against', type=Path, metavar='TREE', help='root of another checkout')
    parser.add_argument(
        '--with', dest='extra', nargs='+', default=[], metavar='"KEY:=VALUE ..."', help='other parameters'
    )
    parser.add_argument('--always', nargs='+', default=[], metavar='KEY:=VALUE', help='of all variants')
    parser.add_argument('--output-type', default='joint_trajectory')
    parser.add_argument('--joint-rate', type=float, default=200.0, help='joint states a second (%(default)g)')
    parser.add_argument('--chunk-rate', type=float, default=10.0, help='chunks a second (%(default)g)')
    parser.add_argument('--logs', type=Path, help='folder that keeps the logs of the processes')
    return parser.parse_args()


if __name__ == '__main__':
    main()
