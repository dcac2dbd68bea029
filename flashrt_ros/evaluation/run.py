"""What happened in a run of the nodes, as arrays, read from a bag of the topics that it published.

The bag's times are those of publication where the recorder knew them (DDS source timestamps), else those of
reception.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control.chunk import Chunk
from flashrt_ros.control.messages import chunk_from_message
from flashrt_ros.evaluation.bag import Bag, BagError
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.ingest.stream import stamp_ns

STAGES = (
    'transport',
    'wait',
    'take',
    'preprocess',
    'vision',
    'prefill',
    'denoise',
    'postprocess',
    'publish',
)
"""Stages of the latency budget: fields of InferenceStats, in the order in which time passes."""


@dataclass(frozen=True)
class RunTopics:
    """The nodes' topics, resolved, and the one of what a controller commanded in the recording."""

    chunks: str = '/action_chunk'
    stats: str = '/inference_stats'
    executing: str = '/executing_chunk'
    reference: str = '/demo/recorded_commands'
    diagnostics: str = '/diagnostics'


@dataclass(frozen=True)
class Series:
    """Joint positions over time. times_ns: int64 [N]. values: float64 [N, D], rad or m."""

    times_ns: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Run:
    """joints: names, [D]. inputs_ns: input name (view, or 'state') -> int64 [N], when each was published.

    chunks, stats: what was predicted, and the InferenceStats messages; chunks_ns, stats_ns: when published.
    measured: joint states at their stamps. commanded: the streamer's commands when they were published.
    reference: what the robot's own controller commanded in the recording; empty where there is none.
    status: name of a diagnostic status -> its values when it was last published.
    """

    joints: tuple[str, ...]
    inputs_ns: dict[str, np.ndarray]
    chunks: list[Chunk]
    chunks_ns: np.ndarray
    stats_ns: np.ndarray
    stats: list[Any]
    measured: Series
    commanded: Series
    reference: Series
    status: dict[str, dict[str, str]]

    @property
    def ready_ns(self) -> int:
        """When every input had come once, of those that came at all; 0 without any."""
        return max((int(times[0]) for times in self.inputs_ns.values() if times.size), default=0)

    @property
    def end_ns(self) -> int:
        """When the last input came; 0 without any."""
        return max((int(times[-1]) for times in self.inputs_ns.values() if times.size), default=0)


def read_run(bag: Bag, config: RobotConfig, topics: RunTopics | None = None) -> Run:
    """Sort a bag's messages by what they are for this robot. Topics that are not there give empty arrays."""
    topics = topics or RunTopics()
    joints = config.joint_names
    inputs = {name: _times(bag, absolute(topic)) for name, topic in input_topics(config).items()}
    chunks = _messages(bag, topics.chunks)
    stats = _messages(bag, topics.stats)
    states = _messages(bag, absolute(config.joint_states.topic))
    return Run(
        joints=joints,
        inputs_ns=inputs,
        chunks=[chunk_from_message(message).for_joints(joints) for _, message in chunks],
        chunks_ns=np.array([time_ns for time_ns, _ in chunks], dtype=np.int64),
        stats_ns=np.array([time_ns for time_ns, _ in stats], dtype=np.int64),
        stats=[message for _, message in stats],
        measured=_series(
            [
                (stamp_ns(message.header.stamp), _ordered(message.name, message.position, joints))
                for _, message in states
            ],
            len(joints),
        ),
        commanded=_commands(bag, absolute(config.output.topic), joints),
        reference=_commands(bag, topics.reference, joints),
        status={
            status.name: {pair.key: pair.value for pair in status.values}
            for _, message in _messages(bag, topics.diagnostics)
            for status in message.status
        },
    )


def input_topics(config: RobotConfig) -> dict[str, str]:
    """Input name (view, or 'state') -> topic as configured."""
    return {view: camera.topic for view, camera in config.cameras.items()} | {
        STATE: config.joint_states.topic
    }


def absolute(topic: str) -> str:
    """The topic's full name for nodes in the root namespace."""
    return topic if topic.startswith('/') else f'/{topic}'


def _messages(bag: Bag, topic: str) -> list[tuple[int, Any]]:
    return list(bag.messages(topic)) if topic in bag.topics else []


def _times(bag: Bag, topic: str) -> np.ndarray:
    records = bag.records([topic]) if topic in bag.topics else ()
    return np.array([record.time_ns for record in records], dtype=np.int64)


def _commands(bag: Bag, topic: str, joints: tuple[str, ...]) -> Series:
    rows = [(time_ns, command_of(message, joints)) for time_ns, message in _messages(bag, topic)]
    return _series(rows, len(joints))


def command_of(message: Any, joints: tuple[str, ...]) -> np.ndarray:
    """The first target of any of the three message types that commands are sent as.

    Raises BagError for a message that does not command every joint.
    """
    if hasattr(message, 'points'):
        if not len(message.points):
            raise BagError('a trajectory has no points', 'commands', 'send at least one point')
        return _ordered(message.joint_names, message.points[0].positions, joints)
    if hasattr(message, 'position'):
        return _ordered(message.name, message.position, joints)
    values = np.asarray(message.data, dtype=np.float64)
    if values.size != len(joints):
        raise BagError(
            f'{values.size} values for {len(joints)} joints', 'commands', 'send one value for each joint'
        )
    return values


def _ordered(names: list[str], values: np.ndarray, joints: tuple[str, ...]) -> np.ndarray:
    missing = [joint for joint in joints if joint not in names]
    if missing:
        raise BagError(
            f"a message has no joint '{missing[0]}', only {', '.join(names)}",
            'joints',
            'read the bag with the configuration of the robot that it was recorded from',
        )
    if len(values) < len(names):
        raise BagError(
            f'{len(values)} values for {len(names)} names', 'joints', 'send a position for every joint'
        )
    return np.array([values[names.index(joint)] for joint in joints], dtype=np.float64)


def _series(rows: list[tuple[int, np.ndarray]], width: int) -> Series:
    times = np.array([time_ns for time_ns, _ in rows], dtype=np.int64)
    return Series(times, np.array([values for _, values in rows]).reshape(-1, width))
