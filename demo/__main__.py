"""The demo's command line; `make demo` starts it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from demo.ending import exit_code
from demo.graph import Options
from demo.run import ROOT, run

EXIT_CODES = """exit codes: 0 every rate was kept; 1 a rate was missed by more than 10 %; 2 a file, option or
configuration is wrong; 3 a process died or did not answer; 130 interrupted."""


def main() -> int:
    return exit_code(lambda: run(_options()).passed)


def _options() -> Options:
    parser = argparse.ArgumentParser(
        prog='python -m demo',
        description='Replay a recorded episode into the policy over real DDS, and report rates and latency.',
        epilog=EXIT_CODES,
    )
    parser.add_argument('--config', type=Path, default=ROOT / 'config/so101.yaml')
    parser.add_argument('--checkpoint', type=Path, help="default: the configuration's")
    parser.add_argument('--bag', type=Path, default=ROOT / 'demo/episode')
    parser.add_argument('--out', type=Path, default=ROOT / 'demo/out')
    parser.add_argument('--device', choices=['cpu', 'cuda'], help="default: the configuration's")
    parser.add_argument('--duration', type=float, default=float('inf'), help='seconds of the bag to play')
    # Ports of higher domains collide with those that Linux gives to outgoing connections.
    parser.add_argument('--domain', type=int, default=1 + os.getpid() % 100, help='ROS_DOMAIN_ID')
    arguments = parser.parse_args()
    return Options(
        config=arguments.config,
        checkpoint=arguments.checkpoint,
        bag=arguments.bag,
        out=arguments.out,
        device=arguments.device,
        duration=arguments.duration,
        domain=arguments.domain,
    )


if __name__ == '__main__':
    sys.exit(main())
