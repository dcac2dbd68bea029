"""Listens to the nodes and keeps when each published what: the writer's own times, not those of reception."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from flashrt_ros.msg import ActionChunk, InferenceStats
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState

from benchmarks.e2e.stages import Recording
from flashrt_ros.control import Entry
from flashrt_ros.ingest.cdr import header_stamp_ns
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.ingest.stream import stamp_ns
from flashrt_ros.nodes.feedback import executing_chunk
from flashrt_ros.nodes.unread_state import StateReader

ALL = QoSProfile(depth=5000, reliability=ReliabilityPolicy.RELIABLE)
STAGES = ('transport', 'wait', 'take', 'preprocess', 'vision', 'prefill', 'denoise', 'postprocess')


class Listener:
    """recording: what has come since it was replaced. counts: input -> what the policy node has counted.

    pace: rate and lateness of the commands over the last ten seconds, as the streamer says. scheduling:
    how it is scheduled, in its words.
    """

    def __init__(self, node: Node, commands: str) -> None:
        self.recording, self._reader = Recording(), StateReader()
        self.counts: dict[str, dict[str, int]] = {}
        self.pace: dict[str, float] = {}
        self.scheduling = ''
        node.create_subscription(InferenceStats, 'inference_stats', self._stats, ALL)
        node.create_subscription(ActionChunk, 'action_chunk', self._chunk, ALL)
        node.create_subscription(ActionChunk, 'executing_chunk', self._executing, ALL)
        node.create_subscription(JointState, commands, self._command, ALL, raw=True)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnostics, 10)

    def _stats(self, message: InferenceStats) -> None:
        if message.blocked:
            self.recording.blocked.append(message.blocked)
            return
        stages = {stage: float(getattr(message, stage)) for stage in STAGES}
        # The message counts from the oldest input on, which may be the joints, and waits for the newest; here
        # the two are to add up from the camera's stamp on.
        ages = dict(zip(message.inputs, message.ages, strict=True))
        frames_s = max(age for name, age in ages.items() if name != STATE)
        stages['wait'] = frames_s - stages['transport']
        stamp = stamp_ns(message.header.stamp) + round((max(ages.values()) - frames_s) * 1e9)
        self.recording.stages[message.epoch, message.sequence] = stamp, stages

    def _chunk(self, message: ActionChunk, info: Mapping[str, Any]) -> None:
        self.recording.chunks[message.epoch, message.sequence] = info['source_timestamp']

    def _executing(self, message: ActionChunk, info: Mapping[str, Any]) -> None:
        if message.horizon:
            key = message.epoch, message.sequence
            self.recording.accepted.setdefault(key, info['source_timestamp'])
            chunk, begin_ns = executing_chunk(message)
            if chunk is not None:
                self.recording.entries[key] = Entry(chunk, begin_ns)

    def _command(self, message: bytes, info: Mapping[str, Any]) -> None:
        self.recording.commands.append(info['source_timestamp'])
        positions = np.array(self._reader.unread(message).position)
        self.recording.made.append((header_stamp_ns(message), positions))

    def _diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            node, _, name = status.name.partition(': input ')
            values = {pair.key: pair.value for pair in status.values}
            if node.endswith('action_streamer') and not name:
                pace = {key: value for key, value in values.items() if key.startswith('command ')}
                self.scheduling = values.get('scheduling', '')
                self.pace = {key: float(value) for key, value in pace.items() if value != 'not running'}
            if node.endswith('policy_node') and name:
                self.counts[name] = {key: int(values[key]) for key in ('received', 'rejected', 'unused')}
