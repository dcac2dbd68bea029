"""The messages of a bag that a robot's configuration asks for, in the order of time.

What cannot be decoded is noted with its topic and time, and left out, as a node would never have received it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.evaluation.bag import Bag, BagError, Record
from flashrt_ros.evaluation.replay.problems import Problems
from flashrt_ros.evaluation.run import absolute, input_topics
from flashrt_ros.ingest.joints import STATE

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
JOINT_STATE, TRAJECTORY = 'sensor_msgs/msg/JointState', 'trajectory_msgs/msg/JointTrajectory'
ARRAY = 'std_msgs/msg/Float64MultiArray'
COMMAND_TYPES = (TRAJECTORY, JOINT_STATE, ARRAY)
REFERENCE = 'reference'
"""Name of the recorded commands, beside those of the inputs."""

TIME = ''
"""Name of an arrival that brings nothing but the time."""


@dataclass(frozen=True)
class Sources:
    """inputs: input name (view, or 'state') -> topic. reference: topic of the recorded commands, or ''."""

    inputs: Mapping[str, str]
    reference: str


@dataclass(frozen=True)
class Arrival:
    """A decoded message. name: view, 'state', REFERENCE or TIME. time_ns: when it was recorded [bag time]."""

    name: str
    time_ns: int
    message: Any
    record: Record


class Span(Protocol):
    """From when to when the inputs are, in ns; the end may be known only when it has come."""

    @property
    def start_ns(self) -> int: ...
    @property
    def end_ns(self) -> int: ...
    @property
    def duration_s(self) -> float: ...


class Inputs(Protocol):
    """Arrivals in the order of time, from a bag or from a robot that is simulated meanwhile."""

    @property
    def bag(self) -> Span: ...
    @property
    def sources(self) -> Sources: ...
    @property
    def problems(self) -> Problems: ...
    def __iter__(self) -> Iterator[Arrival]: ...


@dataclass
class Feed:
    """Iterating gives an Arrival for every message that could be decoded."""

    bag: Bag
    sources: Sources
    problems: Problems = field(init=False)

    def __post_init__(self) -> None:
        self.problems = Problems(self.bag.start_ns)
        if self.bag.fault is not None:
            self.problems.note(str(self.bag.path), self.bag.fault.what, self.bag.start_ns)

    def __iter__(self) -> Iterator[Arrival]:
        bag = self.bag
        names = {topic: name for name, topic in self.sources.inputs.items()}
        if self.sources.reference:
            names.setdefault(self.sources.reference, REFERENCE)
        last_ns = bag.start_ns

        def damaged(error: BagError) -> None:
            self.problems.note(str(bag.path), error.what, last_ns, kind='damaged')

        for record in bag.records(list(names), on_damage=damaged):
            last_ns = record.time_ns
            try:
                message = bag.decode(record)
            except BagError as error:
                self.problems.note(record.topic, error.what, record.time_ns, kind='undecodable')
                continue
            yield Arrival(names[record.topic], record.time_ns, message, record)


def find_sources(
    bag: Bag, config: RobotConfig, renamed: Mapping[str, str] | None = None, reference: str | None = None
) -> Sources:
    """Which topic of the bag is which input.

    renamed: topic of the configuration -> its name in the bag. reference: topic of the recorded commands;
    None takes `output.topic`, else the only other topic whose messages command this robot's joints.
    Raises BagError for an input that the bag lacks, or has with another type, or without messages.
    """
    moved = {absolute(old): absolute(new) for old, new in (renamed or {}).items()}
    inputs = {name: absolute(topic) for name, topic in input_topics(config).items()}
    inputs = {name: moved.get(topic, topic) for name, topic in inputs.items()}
    for name, topic in inputs.items():
        _check_input(bag, config, name, topic)
    if reference is not None:
        return Sources(inputs, _chosen_reference(bag, absolute(reference)))
    return Sources(inputs, _found_reference(bag, config, set(inputs.values()), moved))


def wanted_type(config: RobotConfig, name: str) -> str:
    """The message type of an input."""
    if name == STATE:
        return JOINT_STATE
    return COMPRESSED if config.cameras[name].transport == 'compressed' else IMAGE


def _check_input(bag: Bag, config: RobotConfig, name: str, topic: str) -> None:
    wanted = wanted_type(config, name)
    found = bag.topics.get(topic)
    if found is None:
        same = sorted(other.name for other in bag.topics.values() if other.type == wanted)
        there = f'of its type {wanted} there is {", ".join(same) or "none"}'
        raise BagError(
            f"the topic '{topic}' of the input '{name}' is not in it; {there}",
            str(bag.path),
            f'if it was renamed, add: --rename {topic}:={same[0] if same else "/its/name"}',
        )
    if found.type != wanted:
        hint = 'set its transport to match' if name != STATE else 'name the topic of the joint states'
        raise BagError(f"'{topic}' holds {found.type}, not {wanted}", str(bag.path), hint)
    if found.count == 0:
        raise BagError(f"the topic '{topic}' has no messages", str(bag.path), 'record it again')


def _chosen_reference(bag: Bag, topic: str) -> str:
    found = bag.topics.get(topic)
    if found is None or found.type not in COMMAND_TYPES:
        what = 'is not in it' if found is None else f'holds {found.type}'
        raise BagError(
            f"the reference '{topic}' {what}", str(bag.path), f'name a topic of {", ".join(COMMAND_TYPES)}'
        )
    return topic


def _found_reference(bag: Bag, config: RobotConfig, taken: set[str], moved: Mapping[str, str]) -> str:
    own = moved.get(absolute(config.output.topic), absolute(config.output.topic))
    if own in bag.topics and bag.topics[own].type in COMMAND_TYPES:
        return own
    likely = [
        t.name for t in bag.topics.values() if t.name not in taken and _commands_joints(bag, t.name, config)
    ]
    return likely[0] if len(likely) == 1 else ''


def _commands_joints(bag: Bag, topic: str, config: RobotConfig) -> bool:
    """Whether the topic's first message names every joint of this robot."""
    if bag.topics[topic].type not in (TRAJECTORY, JOINT_STATE) or not bag.topics[topic].count:
        return False
    try:
        _, message = next(iter(bag.messages(topic)))
    except (BagError, StopIteration):
        return False
    names = message.joint_names if hasattr(message, 'joint_names') else message.name
    return set(config.joint_names) <= set(names)
