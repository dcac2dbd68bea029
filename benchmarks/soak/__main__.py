"""Policy and streamer as real processes through a day of simulated time: does anything grow or go missing?

usage: python -m benchmarks.soak [--hours 24] [--speed 10] [--output soak.json]

Ctrl-C ends the run early, with the report of what it saw. At a high speed a busy machine makes commands go
missing: run it on a quiet one, or with `nice -n -10`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.soak.run import soak
from benchmarks.soak.verdict import exit_code, judge, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--hours', type=float, default=24.0, help='simulated (%(default)g)')
    parser.add_argument('--speed', type=float, default=10.0, help='simulated by real time (%(default)g)')
    parser.add_argument('--every', type=float, default=10.0, help='seconds between readings (%(default)g)')
    parser.add_argument('--logs', type=Path, help='folder that keeps the logs of the processes')
    parser.add_argument('--output', type=Path, metavar='JSON')
    arguments = parser.parse_args()
    # Nothing leaves this machine, and no other graph is listened to.
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(50 + os.getpid() % 50))
    with tempfile.TemporaryDirectory() as name:
        logs = arguments.logs or Path(name)
        logs.mkdir(parents=True, exist_ok=True)
        report = soak(Path(name), logs, arguments.hours, arguments.speed, arguments.every)
    rows = judge(report)
    report['verdict'] = rows
    print('\n' + table(rows), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')
    return exit_code(rows)


if __name__ == '__main__':
    sys.exit(main())
