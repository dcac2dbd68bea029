"""One run of the demo: start the processes, bring the nodes up, play the bag, record, judge, write.

Three processes besides this one: `policy_node`, `action_streamer` and the player. This one records.
"""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from demo.children import Family
from demo.lifecycle import ACTIVATE, CONFIGURE, Lifecycle
from demo.progress import Progress
from demo.recorder import Recorder
from flashrt_ros.configuration import RobotConfig, load_config
from flashrt_ros.evaluation.bag import Bag, BagError, open_bag
from flashrt_ros.evaluation.plots import write_plots
from flashrt_ros.evaluation.report import to_text, write_json
from flashrt_ros.evaluation.run import RunTopics, read_run
from flashrt_ros.evaluation.verdict import Verdict, judge
from flashrt_ros.ingest.joints import STATE

ROOT = Path(__file__).resolve().parents[1]
COMMAND_TYPES = {
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'float64_multi_array': 'std_msgs/msg/Float64MultiArray',
    'joint_state': 'sensor_msgs/msg/JointState',
}
APPEAR_S, CONFIGURE_S, ACTIVATE_S = 60.0, 300.0, 30.0
"""Longest waits; loading a full-size checkpoint from a slow disk takes minutes."""

SETTLE_S = 0.3
"""From the end of the bag to the end of recording: what is on its way arrives."""


@dataclass(frozen=True)
class Options:
    """What the user chose. checkpoint: None for the configuration's own. device: 'cpu' or 'cuda'."""

    config: Path
    checkpoint: Path | None
    bag: Path
    out: Path
    device: str
    duration: float
    domain: int


def run(options: Options) -> Verdict:
    """Run the demo and write its results into `options.out`.

    Raises FlashRTError for wrong input, ChildDied or TransitionFailed if a process does not do its part.
    """
    config = load_config(options.config)
    _prepare(options)
    with open_bag(options.bag) as bag:
        inputs_hz = _recorded_rates(bag, config)
        length = min(options.duration, bag.duration_s)
        recorder = _record(options, config, bag, length)
    shutil.rmtree(options.out / 'results', ignore_errors=True)
    recorder.write(options.out / 'results')
    return _conclude(options, config, inputs_hz)


def _prepare(options: Options) -> None:
    """Environment of this process and its children: a DDS domain of their own that stays on this machine."""
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(options.domain)
    os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(ROOT / 'config/fastdds_large_images.xml'))


def _recorded_rates(bag: Bag, config: RobotConfig) -> dict[str, float]:
    """Input name -> Hz in the bag. Raises BagError for an input that is not in it."""
    topics = {view: camera.topic for view, camera in config.cameras.items()}
    topics[STATE] = config.joint_states.topic
    missing = [topic for topic in topics.values() if topic not in bag.topics]
    if missing:
        raise BagError(
            f"there is no topic '{missing[0]}', only {', '.join(sorted(bag.topics))}",
            str(bag.path),
            'play a bag of the robot that the configuration describes',
        )
    return {name: (bag.topics[topic].count - 1) / bag.duration_s for name, topic in topics.items()}


def _record(options: Options, config: RobotConfig, bag: Bag, length: float) -> Recorder:
    """Everything that happens while ROS is up."""
    progress = Progress()
    rclpy.init()
    node = rclpy.create_node('demo')
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        with Family(options.out) as family:
            progress.step('starting policy_node and action_streamer')
            nodes = _start_nodes(options, family, node, executor)
            recorder = _subscribe(node, config, bag)
            for lifecycle in nodes:
                lifecycle.appear(APPEAR_S)
            for lifecycle in nodes:
                progress.step(f'configuring {lifecycle.name}')
                lifecycle.change(CONFIGURE, CONFIGURE_S)
            for lifecycle in nodes:
                lifecycle.change(ACTIVATE, ACTIVATE_S)
            progress.step(f'playing {options.bag} ({length:.1f} s)')
            _play(options, config, family, executor, recorder, progress)
            progress.step('ending the processes')
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    progress.step('judging')
    return recorder


def _start_nodes(
    options: Options, family: Family, node: Node, executor: SingleThreadedExecutor
) -> list[Lifecycle]:
    common = ['--ros-args', '-p', f'config:={options.config.resolve()}']
    chosen = ['-p', f'policy.device:={options.device}']
    if options.checkpoint is not None:
        chosen += ['-p', f'policy.checkpoint:={options.checkpoint.resolve()}']
    children = [
        family.start('action_streamer', 'flashrt_ros.nodes.action_streamer', common),
        family.start('policy_node', 'flashrt_ros.nodes.policy_node', [*common, *chosen]),
    ]
    return [Lifecycle(node, executor, child, family.check) for child in children]


def _subscribe(node: Node, config: RobotConfig, bag: Bag) -> Recorder:
    topics = {topic.name: topic.type for topic in bag.topics.values()}
    names = RunTopics()
    topics[names.chunks] = 'flashrt_ros/msg/ActionChunk'
    topics[names.stats] = 'flashrt_ros/msg/InferenceStats'
    topics[node.resolve_topic_name(config.output.topic)] = COMMAND_TYPES[config.output.type]
    topics['/diagnostics'] = 'diagnostic_msgs/msg/DiagnosticArray'
    return Recorder(node, topics, {topic.name for topic in bag.topics.values() if not topic.reliable})


def _play(
    options: Options,
    config: RobotConfig,
    family: Family,
    executor: SingleThreadedExecutor,
    recorder: Recorder,
    progress: Progress,
) -> None:
    player = family.start(
        'player', 'demo.player', [str(options.bag.resolve()), '--duration', str(options.duration)]
    )
    while player.running:
        executor.spin_once(timeout_sec=0.05)
        family.check(finished=[player])
        progress.show(_so_far(recorder, config))
    family.check(finished=[player])
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=0.05)


def _so_far(recorder: Recorder, config: RobotConfig) -> str:
    named = {
        'joint states': config.joint_states.topic,
        'chunks': RunTopics().chunks,
        'commands': config.output.topic,
    }
    return ', '.join(f'{recorder.counts["/" + topic.lstrip("/")]} {name}' for name, topic in named.items())


def _conclude(options: Options, config: RobotConfig, inputs_hz: dict[str, float]) -> Verdict:
    with open_bag(options.out / 'results') as bag:
        happened = read_run(bag, config)
    verdict = judge(happened, config, inputs_hz)
    about = _about(options, config)
    text = to_text(verdict, about)
    print(text)
    (options.out / 'report.txt').write_text(text, encoding='utf-8')
    write_json(options.out / 'report.json', verdict, about)
    written = write_plots(options.out, happened, verdict, config.rates.control_rate_hz)
    print('Written: ' + ', '.join(str(path) for path in [options.out / 'report.json', *written]))
    return verdict


def _about(options: Options, config: RobotConfig) -> dict[str, Any]:
    return {
        'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        'machine': f'{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}',
        'software': f'Python {platform.python_version()}, ROS 2 {os.environ.get("ROS_DISTRO", "unknown")}',
        'policy': f'{options.checkpoint or config.policy.checkpoint} on {options.device}',
        'episode': str(options.bag),
        'command': ' '.join(sys.argv),
    }


def _processor() -> str:
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.machine()
