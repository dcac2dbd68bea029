"""Show in a terminal what the nodes of a robot are doing: state, stop reason, rates, ages, latency.

    flashrt status                  # until Ctrl-C, twice a second
    flashrt status --once           # once, for scripts; the exit code is 1 where anything is in trouble

Listens to /diagnostics and inference_stats, and changes nothing. Needs ROS 2 (rclpy). Where announcements are
lost Fast DDS repeats them after 3 s: finding the nodes may take longer than that.
"""

from __future__ import annotations

import argparse

from flashrt_ros.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--once', action='store_true', help='print once and end')
    parser.add_argument(
        '--wait', type=float, default=8.0, metavar='S', help='longest wait for a first report (%(default)s s)'
    )
    parser.add_argument('--namespace', default='', metavar='NS', help='of the nodes, for inference_stats')


def run(arguments: argparse.Namespace) -> int:
    try:
        import rclpy  # noqa: F401
    except ImportError:
        raise ConfigError(
            'ROS 2 (rclpy) is not installed here', 'status', 'run it in the environment of the nodes'
        ) from None
    from flashrt_ros.nodes.status_view import watch

    return watch(arguments.once, arguments.wait, arguments.namespace)
