"""Subscribes to everything in the demo's graph and keeps it as it came, to be judged and written afterwards.

Nothing is decoded while the demo runs, so that this process takes little from the nodes. Times are DDS source
timestamps: when the sender published, not when this process came to look.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from demo.message_types import message_class
from flashrt_ros.evaluation.bag import Record

MESSAGES = Path(__file__).resolve().parents[1] / 'msg'
QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
QOS_SENSOR = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


class Recorder:
    """topics: name -> message type, as in 'sensor_msgs/msg/Image'. sensors: names of best-effort topics."""

    def __init__(self, node: Node, topics: Mapping[str, str], sensors: set[str]) -> None:
        self.topics = dict(topics)
        self.counts: Counter[str] = Counter()
        self._records: list[Record] = []
        for topic, kind in topics.items():
            node.create_subscription(
                message_class(kind),
                topic,
                functools.partial(self._keep, topic),
                QOS_SENSOR if topic in sensors else QOS,
                raw=True,
            )

    def _keep(self, topic: str, data: bytes, info: dict[str, Any]) -> None:
        self.counts[topic] += 1
        self._records.append(Record(topic, info['source_timestamp'], data))

    def write(self, path: Path) -> None:
        """Write what came as an MCAP rosbag2, in the order of publication."""
        types = get_typestore(Stores.ROS2_JAZZY)
        for file in sorted(MESSAGES.glob('*.msg')):
            types.register(get_types_from_msg(file.read_text(), f'flashrt_ros/msg/{file.stem}'))
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
            connections = {
                topic: bag.add_connection(topic, kind, typestore=types) for topic, kind in self.topics.items()
            }
            for record in sorted(self._records, key=lambda record: record.time_ns):
                bag.write(connections[record.topic], record.time_ns, record.data)
