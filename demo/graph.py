"""The demo's ROS graph: both nodes and the player as processes, and this process, which records.

    with Graph(options, config, bag, progress) as graph:
        graph.bring_up()
        graph.play()
    graph.recorder.write(...)

Leaving the context ends all processes, whatever happened.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from demo.children import Family
from demo.lifecycle import ACTIVATE, CONFIGURE, Lifecycle
from demo.progress import Progress
from demo.recorder import Recorder
from flashrt_ros.configuration import RobotConfig
from flashrt_ros.evaluation.bag import Bag
from flashrt_ros.evaluation.run import RunTopics, absolute

COMMAND_TYPES = {
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'float64_multi_array': 'std_msgs/msg/Float64MultiArray',
    'joint_state': 'sensor_msgs/msg/JointState',
}
APPEAR_S, CONFIGURE_S, ACTIVATE_S = 60.0, 300.0, 30.0
"""Longest waits; loading a full-size checkpoint from a slow disk takes minutes."""

SETTLE_S = 0.3
"""From the end of the bag to the end of recording: what is on its way arrives."""

POLL_S = 0.05


@dataclass(frozen=True)
class Options:
    """What the user chose. checkpoint, device: None for the configuration's own."""

    config: Path
    checkpoint: Path | None
    bag: Path
    out: Path
    device: str | None
    duration: float
    domain: int


class Graph:
    """Raises ChildDied or TransitionFailed as soon as a process does not do its part."""

    def __init__(self, options: Options, config: RobotConfig, bag: Bag, progress: Progress) -> None:
        self._options, self._config = options, config
        self._topics = RunTopics()
        self._progress = progress
        # Ctrl-C is Python's alone: rclpy's own handler takes the context away in the middle of its making.
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('demo')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._family = Family(options.out)
        self.recorder = self._record(bag)

    def bring_up(self) -> None:
        """Start both nodes, and configure and activate them."""
        self._progress.step('starting policy_node and action_streamer')
        nodes = self._start_nodes()
        for node in nodes:
            node.appear(APPEAR_S)
        for node in nodes:
            self._progress.step(f'configuring {node.name}')
            node.change(CONFIGURE, CONFIGURE_S)
        for node in nodes:
            node.change(ACTIVATE, ACTIVATE_S)

    def play(self) -> None:
        """Play the bag to its end, or for as long as the user chose."""
        arguments = [str(self._options.bag.resolve()), '--duration', str(self._options.duration)]
        player = self._family.start('player', 'demo.player', arguments)
        while player.running:
            self._executor.spin_once(timeout_sec=POLL_S)
            self._family.check(finished=[player])
            self._progress.show(self._so_far())
        self._family.check(finished=[player])
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=POLL_S)
        self._progress.step('ending the processes')

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self._family.end()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _start_nodes(self) -> list[Lifecycle]:
        options, family = self._options, self._family
        common = ['--ros-args', '-p', f'config:={options.config.resolve()}']
        chosen = ['-p', f'policy.device:={options.device}'] if options.device else []
        if options.checkpoint is not None:
            chosen += ['-p', f'policy.checkpoint:={options.checkpoint.resolve()}']
        children = [
            family.start('action_streamer', 'flashrt_ros.nodes.action_streamer', common),
            family.start('policy_node', 'flashrt_ros.nodes.policy_node', [*common, *chosen]),
        ]
        return [Lifecycle(self._node, self._executor, child, family.check) for child in children]

    def _record(self, bag: Bag) -> Recorder:
        output = self._config.output
        topics = {topic.name: topic.type for topic in bag.topics.values()}
        topics[self._topics.chunks] = 'flashrt_ros/msg/ActionChunk'
        topics[self._topics.stats] = 'flashrt_ros/msg/InferenceStats'
        topics[self._topics.diagnostics] = 'diagnostic_msgs/msg/DiagnosticArray'
        topics[absolute(output.topic)] = COMMAND_TYPES[output.type]
        sensors = {topic.name for topic in bag.topics.values() if not topic.reliable}
        return Recorder(self._node, topics, sensors)

    def _so_far(self) -> str:
        counts = self.recorder.counts
        return (
            f'{counts[absolute(self._config.joint_states.topic)]} joint states, '
            f'{counts[self._topics.chunks]} chunks, {counts[absolute(self._config.output.topic)]} commands'
        )
