"""Records what running nodes do into an MCAP rosbag2, on the clock that they go by, to be evaluated.

`ros2 bag record` does as well; this one needs no ros2bag, and knows the topics from the robot's YAML.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosbags.rosbag2 import StoragePlugin, Writer
from rosgraph_msgs.msg import Clock

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.evaluation.interfaces import CHUNK, STATS, known_types
from flashrt_ros.evaluation.replay.feed import ARRAY, JOINT_STATE, TRAJECTORY, wanted_type
from flashrt_ros.evaluation.run import RunTopics, absolute, input_topics
from flashrt_ros.ingest.stream import stamp_ns
from flashrt_ros.nodes.main import StopRequest
from flashrt_ros.nodes.sent_time import SentTime

RELIABLE = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
SENSOR = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
"""A best-effort reader matches every writer."""

_COMMANDS = {'joint_trajectory': TRAJECTORY, 'float64_multi_array': ARRAY, 'joint_state': JOINT_STATE}
_WAKE_S = 0.1

_REST_S = 5.0
"""Longest time for what waits to be taken when a recording ends."""


def topics_of(config: RobotConfig, reference: str, images: bool) -> dict[str, str]:
    """Topic -> message type of everything that an evaluation needs."""
    names = RunTopics()
    topics = {
        absolute(topic): wanted_type(config, name)
        for name, topic in input_topics(config).items()
        if images or name not in config.cameras
    }
    topics |= {names.chunks: CHUNK, names.stats: STATS, names.executing: CHUNK}
    topics |= {absolute(config.output.topic): _COMMANDS[config.output.type]}
    if reference:
        topics[absolute(reference)] = TRAJECTORY
    return topics


class Recorder(Node):
    """Writes every message as it comes. counts: topic -> messages so far. last: monotonic time of the
    latest."""

    def __init__(
        self, path: Path, topics: Mapping[str, str], simulated: bool, outputs: set[str], **options: Any
    ) -> None:
        """outputs: topics that publishers offer reliably. simulated: go by /clock."""
        super().__init__('flashrt_recorder', **options)
        self.counts: Counter[str] = Counter()
        self.last = time.monotonic()
        self._simulated, self._sent_time = simulated, SentTime()
        if simulated:
            self.create_subscription(Clock, '/clock', self._note_clock, SENSOR)
        self._lock = threading.Lock()
        self._writer: Writer | None = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        for topic, kind in topics.items():
            connection = self._writer.add_connection(topic, kind, typestore=known_types())
            package, _, name = kind.split('/')
            message_type = getattr(importlib.import_module(f'{package}.msg'), name)
            keep = functools.partial(self._keep, topic, connection)
            qos = RELIABLE if topic in outputs else SENSOR
            self.create_subscription(message_type, topic, keep, qos, raw=True)

    def close(self) -> None:
        """Complete the bag; what comes later is not recorded."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
            self._writer = None

    def _note_clock(self, message: Clock, info: Any) -> None:
        self._sent_time.note(info['source_timestamp'], stamp_ns(message.clock))

    def _keep(self, topic: str, connection: Any, data: bytes, info: Any) -> None:
        # When the sender published, not when this process came to look.
        sent_ns = info['source_timestamp']
        if self._simulated:
            sent_ns = self._sent_time.at(sent_ns)
        with self._lock:
            if self._writer is None or sent_ns <= 0:
                return
            self._writer.write(connection, sent_ns, data)
            self.counts[topic] += 1
            self.last = time.monotonic()


def record(
    config: RobotConfig,
    path: Path,
    reference: str,
    images: bool,
    simulated: bool,
    idle_s: float,
    longest_s: float,
) -> Counter[str]:
    """Record until told to end (SIGINT or SIGTERM), until nothing has come for idle_s after something had, or
    for longest_s. What has come by then is in the bag."""
    topics = topics_of(config, reference, images)
    inputs = {absolute(topic) for topic in input_topics(config).values()}
    stopping = StopRequest()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    recorder = Recorder(path, topics, simulated, set(topics) - inputs)
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    stopping.at_signal(lambda: executor.create_task(lambda: None))
    end = time.monotonic() + longest_s
    try:
        while not stopping.requested and time.monotonic() < end:
            executor.spin_once(timeout_sec=_WAKE_S)
            if recorder.counts and time.monotonic() - recorder.last > idle_s:
                break
        _take_the_rest(executor, recorder)
    finally:
        recorder.close()
        executor.shutdown()
        recorder.destroy_node()
        rclpy.try_shutdown()
    return recorder.counts


def _take_the_rest(executor: SingleThreadedExecutor, recorder: Recorder) -> None:
    """What had come when the recording ended and waits to be taken; not what comes ever anew."""
    quiet, end = 0, time.monotonic() + _REST_S
    while quiet < len(list(recorder.subscriptions)) and time.monotonic() < end:
        before = recorder.counts.total()
        executor.spin_once(timeout_sec=0.0)
        quiet = 0 if recorder.counts.total() > before else quiet + 1
