"""Listens to the inputs of a robot for the doctor, with the sources and gates of the policy node."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import LoggingSeverity
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState

from flashrt_ros.configuration import RobotConfig, with_values
from flashrt_ros.doctor.finding import Finding, Level
from flashrt_ros.doctor.topics import TopicSeen, clock_finding, outcome_finding, topic_findings
from flashrt_ros.frame import Frame
from flashrt_ros.ingest import Ingest
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.ingest.ring import ring_of
from flashrt_ros.ingest.stream import Stream, stamp_ns
from flashrt_ros.nodes.frame_sources import frame_source, way_of_taking
from flashrt_ros.nodes.qos import subscribe_latest
from flashrt_ros.nodes.serialized_take import unavailable

_TYPES = {'raw': 'sensor_msgs/msg/Image', 'compressed': 'sensor_msgs/msg/CompressedImage'}
_JOINT_STATE = 'sensor_msgs/msg/JointState'

_DISCOVERY_S = 4.0
"""Where announcements are lost Fast DDS repeats them after 3 s: only then nobody publishes."""


class _Noting:
    """A sink that notes what comes and passes it on to the stream of the view."""

    def __init__(self, seen: TopicSeen, stream: Stream) -> None:
        self._seen, self._stream = seen, stream

    def keep(self, frame: Frame) -> None:
        seen = self._seen
        seen.times_s.append(time.monotonic())
        seen.ages_s.append((frame.received_ns - frame.stamp_ns) * 1e-9)
        size = f'{frame.width} x {frame.height}, ' if frame.width else ''
        seen.about = f"{size}'{frame.encoding}', {frame.data.size / 1e6:.2f} MB"
        self._stream.keep(frame)

    def drop(self, reason: str) -> None:
        self._seen.drops.append(reason)
        self._stream.drop(reason)


def listen(config: RobotConfig, seconds: float, simulated: bool) -> list[Finding]:
    """Findings about every input, the clock, and whether an inference could start."""
    rclpy.init()
    overrides = [Parameter('use_sim_time', value=simulated)]
    node, executor = Node('flashrt_doctor', parameter_overrides=overrides), SingleThreadedExecutor()
    executor.add_node(node)
    node.get_logger().set_level(LoggingSeverity.WARN)  # what it does is told by findings
    try:
        return list(_findings(node, executor, config, seconds, simulated))
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


def middleware() -> str:
    """Name of the RMW implementation in use."""
    return str(rclpy.get_rmw_implementation_identifier())


def _findings(
    node: Node, executor: SingleThreadedExecutor, config: RobotConfig, seconds: float, simulated: bool
) -> Iterator[Finding]:
    # Another finding is about what decodes for the node.
    ingest, seen = Ingest(with_values(config, {'ingest.decode': 'cpu'})), _subscribe_all(node, config)
    for view, camera in config.cameras.items():
        source = frame_source(
            node, camera.topic, camera.transport, config.ingest.source, functools.partial(ring_of, config)
        )
        source.start(_Noting(seen[view], ingest.streams[view]))
    subscribe_latest(
        node, JointState, config.joint_states.topic, lambda m: _note_state(node, ingest, seen[STATE], m)
    )
    found_by = time.monotonic() + _DISCOVERY_S
    while not all(_publishers(node, one) for one in seen.values()) and time.monotonic() < found_by:
        executor.spin_once(timeout_sec=0.1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
    why_not = unavailable()
    yield Finding(Level.WARN if why_not else Level.OK, 'taking frames', way_of_taking(why_not))
    yield clock_finding(node.count_publishers('/clock'), simulated)
    for name, one in seen.items():
        one.fault = ingest.fault_of(name)
        publishers = _publishers(node, one)
        one.offered, one.publishers = sorted({found.topic_type for found in publishers}), len(publishers)
        yield from topic_findings(one, seconds)
    if not ingest.prompt.strip():
        ingest.prompt = 'none yet'
    yield outcome_finding(ingest.observe(node.get_clock().now().nanoseconds))


def _publishers(node: Node, one: TopicSeen) -> list[Any]:
    return node.get_publishers_info_by_topic(node.resolve_topic_name(one.topic))


def _subscribe_all(node: Node, config: RobotConfig) -> dict[str, TopicSeen]:
    seen = {
        view: TopicSeen(view, camera.topic, _TYPES[camera.transport], (), 0, camera.max_age_s)
        for view, camera in config.cameras.items()
    }
    joints = config.joint_states
    seen[STATE] = TopicSeen(STATE, joints.topic, _JOINT_STATE, (), 0, joints.max_age_s)
    return seen


def _note_state(node: Node, ingest: Ingest, seen: TopicSeen, message: Any) -> None:
    now_ns = node.get_clock().now().nanoseconds
    seen.times_s.append(time.monotonic())
    seen.ages_s.append((now_ns - stamp_ns(message.header.stamp)) * 1e-9)
    seen.about = f'{len(message.name)} joints'
    ingest.offer(STATE, message, now_ns)
