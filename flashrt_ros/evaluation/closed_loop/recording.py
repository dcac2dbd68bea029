"""A simulated episode as an MCAP rosbag2, as `ros2 bag record` would have written it on the robot.

It holds the inputs under the robot's own topics, the commands as joint states under /flashrt/commands, and
the chunks. `flashrt evaluate` reads it like any bag.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control import Plan
from flashrt_ros.evaluation.interfaces import CHUNK, joint_state_at, known_types
from flashrt_ros.evaluation.replay.feed import JOINT_STATE, TIME, Arrival, wanted_type
from flashrt_ros.evaluation.replay.results_bag import CHUNKS, COMMANDS, chunk_message
from flashrt_ros.evaluation.replay.watch import Looked
from flashrt_ros.evaluation.run import absolute, input_topics


class Recording:
    """A Listener that writes. Close it, else the bag is not whole. An older one at `path` is replaced."""

    def __init__(self, path: Path, config: RobotConfig, policy: str) -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._joints, self._types = list(config.joint_names), known_types()
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        kinds = {absolute(topic): wanted_type(config, name) for name, topic in input_topics(config).items()}
        self._kinds = kinds | {COMMANDS: JOINT_STATE, CHUNKS: CHUNK}
        self._connections = {
            topic: self._writer.add_connection(topic, kind, typestore=self._types)
            for topic, kind in self._kinds.items()
        }

    def arrived(self, arrival: Arrival) -> None:
        if arrival.name != TIME:
            record = arrival.record
            self._writer.write(self._connections[record.topic], record.time_ns, record.data)

    def looked(self, looked: Looked, plan: Plan | None, ready_ns: int) -> None:
        """See `Listener`."""
        if plan is not None:
            self._write(CHUNKS, ready_ns, chunk_message(plan.chunk, ready_ns))

    def commanded(self, time_ns: int, positions: np.ndarray) -> None:
        """See `Listener`."""
        self._write(COMMANDS, time_ns, joint_state_at(time_ns, self._joints, positions))

    def close(self) -> None:
        self._writer.close()

    def _write(self, topic: str, time_ns: int, message: object) -> None:
        data = self._types.serialize_cdr(message, self._kinds[topic])
        self._writer.write(self._connections[topic], time_ns, data)
