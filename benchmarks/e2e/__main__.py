"""From camera stamp to command, stage by stage, and the image path against the usual code.

usage: python -m benchmarks.e2e [--device cpu|cuda] [--size 640x480 1280x720] [--rate 30 60] [--seconds 20]
       [--trigger frame tick] [--source auto] [--loss-seconds 60] [--no-path] [--threads 1] [--nano]
       [--precision fp8] [--streamer-priority 50]
       [--output benchmarks/results/NAME.json] [--plot docs/images/e2e.png]

Cameras, policy node and streamer are processes of their own that talk over Fast DDS shared memory. On the CPU
a nano pi0.5 runs, on a GPU the full-size pi0.5 in fp8, both with random weights. A full run takes some five
minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.e2e.graph import measure
from benchmarks.e2e.machine import describe
from benchmarks.e2e.render import draw, table
from benchmarks.e2e.setting import Setting, robot, write_checkpoint, write_robot

LOSS = Setting('1280x720', 60.0)
"""In which no frame may be lost."""


def main() -> None:
    arguments = _parse()
    # Nothing leaves this machine, and no other graph is listened to.
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(50 + os.getpid() % 50))
    report: dict[str, Any] = {'machine': describe(arguments.device), 'device': arguments.device}
    full = arguments.device == 'cuda' and not arguments.nano
    precision = arguments.precision or {'cuda': 'fp8' if full else 'bf16'}.get(arguments.device)
    report |= {'settings': [], 'command': ' '.join(['python -m benchmarks.e2e', *sys.argv[1:]])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = arguments.checkpoint or write_checkpoint(folder, full)
        plan = itertools.product(arguments.size, arguments.rate, arguments.trigger, arguments.source)
        runs = [(Setting(*one), arguments.seconds) for one in plan]
        runs += [(LOSS, arguments.loss_seconds)] if arguments.loss_seconds else []
        for index, (setting, seconds) in enumerate(runs):
            data = robot(
                setting,
                checkpoint,
                arguments.device,
                precision,
                arguments.threads,
                arguments.streamer_priority,
            )
            logs = (arguments.logs or folder) / str(index)
            logs.mkdir(parents=True, exist_ok=True)
            found = measure(setting, write_robot(logs, data), seconds, logs)
            report['settings'].append({'seconds': seconds, **found})
            print(f'\n{table([report["settings"][-1]])}', flush=True)
    if not arguments.no_path:
        import torch

        from benchmarks.e2e.image_path import compare

        torch.set_num_threads(arguments.threads)

        report['image path'] = [compare(size, arguments.device) for size in arguments.size]
        for found in report['image path']:
            print(json.dumps(found), flush=True)
    _keep(report, arguments)


def _keep(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')
    if arguments.plot:
        draw(report, arguments.plot)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--size', nargs='+', default=['640x480', '1280x720'])
    parser.add_argument('--rate', nargs='+', type=float, default=[30.0, 60.0])
    parser.add_argument('--trigger', nargs='+', choices=['frame', 'tick'], default=['frame'])
    parser.add_argument('--source', nargs='+', choices=['auto', 'direct', 'typed'], default=['auto'])
    parser.add_argument('--seconds', type=float, default=20.0, help='of each setting (%(default)g)')
    parser.add_argument(
        '--loss-seconds', type=float, default=60.0, help='of 2 x 720p at 60 Hz; 0: leave it out'
    )
    parser.add_argument('--no-path', action='store_true', help='not the image path against the usual code')
    parser.add_argument('--threads', type=int, default=1, help='of the policy on the CPU (%(default)s)')
    parser.add_argument(
        '--streamer-priority', type=int, metavar='N', help='real-time priority of the streamer (1 to 98)'
    )
    parser.add_argument('--nano', action='store_true', help='on the GPU, too')
    parser.add_argument('--precision', choices=['fp32', 'bf16', 'fp8'])
    parser.add_argument('--checkpoint', type=Path, help='instead of one with random weights')
    parser.add_argument('--logs', type=Path, help='folder that keeps the logs of the processes')
    parser.add_argument('--output', type=Path, metavar='JSON')
    parser.add_argument('--plot', type=Path, metavar='PNG')
    return parser.parse_args()


if __name__ == '__main__':
    main()
