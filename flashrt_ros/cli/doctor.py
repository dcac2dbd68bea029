"""Look at everything that has to be right before a robot moves, and say of each what to do where it is not.

    flashrt doctor --config robot.yaml             # with the cameras and joint states running
    flashrt doctor                                 # middleware, shared memory and GPU alone
    ros2 run flashrt_ros doctor --config robot.yaml

Listens for a few seconds in the environment of the nodes, and changes nothing. One line for each thing: ok,
WARN (works, but could be better), FAIL, or - (of no matter here). The exit code is 1 if something failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from flashrt_ros.cli.exit_codes import BAD, GOOD
from flashrt_ros.configuration import RobotConfig, load_config
from flashrt_ros.doctor import Finding, Level
from flashrt_ros.doctor.finding import all_well
from flashrt_ros.doctor.machine import checkpoint_findings, decoding_finding, gpu_findings
from flashrt_ros.doctor.scheduling import scheduling_findings
from flashrt_ros.doctor.transport import transport_findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--config', type=Path, metavar='YAML', help='of the robot')
    parser.add_argument(
        '--listen', type=float, default=4.0, metavar='S', help='to the topics (%(default)g s)'
    )
    parser.add_argument('--use-sim-time', action='store_true', help='go by /clock, as the nodes do')


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config) if arguments.config else None
    findings = []
    for finding in _findings(config, arguments.listen, arguments.use_sim_time):
        findings.append(finding)
        print(finding.line, flush=True)
    return GOOD if all_well(findings) else BAD


def _findings(config: RobotConfig | None, listen_s: float, simulated: bool) -> Iterator[Finding]:
    yield from gpu_findings(config)
    if config is not None:
        yield from checkpoint_findings(config)
        yield decoding_finding(config)
        yield from scheduling_findings(config.scheduling)
    try:
        from flashrt_ros.nodes.listening import listen, middleware
    except (ImportError, SystemExit) as error:
        fix = 'source the setup.bash of ROS 2 and of this package, or use tools/in_env'
        yield Finding(Level.FAIL, 'ROS 2', str(error), fix)
        return
    yield from transport_findings(os.environ, middleware())
    if config is not None:
        yield from listen(config, listen_s, simulated)


def main() -> int:
    """`ros2 run flashrt_ros doctor`."""
    from flashrt_ros.cli.main import main as flashrt

    return flashrt(['doctor', *sys.argv[1:]])


if __name__ == '__main__':
    sys.exit(main())
