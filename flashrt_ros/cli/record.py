"""Record what running nodes do, to evaluate it with the metrics of a replay.

    ros2 launch flashrt_ros replay.launch.py bag:=BAG config:=robot.yaml &
    flashrt record --config robot.yaml --out live --use-sim-time
    flashrt evaluate live --from-topics --config robot.yaml

Ends with Ctrl-C, after --duration, or when nothing has come for --idle seconds. Needs ROS 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flashrt_ros.cli.exit_codes import BAD, GOOD
from flashrt_ros.configuration import load_config
from flashrt_ros.errors import BackendError, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--config', type=Path, required=True, metavar='YAML', help='of the robot')
    parser.add_argument(
        '--out', type=Path, required=True, metavar='FOLDER', help='of the bag; must not exist'
    )
    parser.add_argument('--reference', default='', metavar='TOPIC', help='of the recorded commands')
    parser.add_argument('--no-images', action='store_true', help='leave the cameras out')
    parser.add_argument(
        '--use-sim-time', action='store_true', help='go by /clock, as the nodes of a replay do'
    )
    parser.add_argument(
        '--idle', type=float, default=5.0, metavar='S', help='end after a silence (%(default)g)'
    )
    parser.add_argument(
        '--duration', type=float, default=float('inf'), metavar='S', help='end after this long'
    )


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    if arguments.out.exists():
        raise ConfigError('it exists already', str(arguments.out), 'name another folder')
    try:
        from flashrt_ros.nodes.recorder import record
    except ImportError as error:
        raise BackendError(f'ROS 2 is not there ({error})', 'record', 'source its setup.bash first') from None
    counts = record(
        config,
        arguments.out,
        arguments.reference,
        not arguments.no_images,
        arguments.use_sim_time,
        arguments.idle,
        arguments.duration,
    )
    for topic, count in sorted(counts.items()):
        print(f'{topic:<44} {count:>8}')
    print(f'Written: {arguments.out}')
    return GOOD if counts else BAD
