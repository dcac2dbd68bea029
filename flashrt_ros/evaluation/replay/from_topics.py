"""An Episode from what running nodes published into a bag: the same figures as of a replay, from topics.

The bag's times must be those of the nodes' clock: `flashrt record` sees to that, also in simulated time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control import ActionKinds, Chunk, ChunkError, chunk_from_message
from flashrt_ros.errors import FlashRTError
from flashrt_ros.evaluation.bag import Bag, BagError
from flashrt_ros.evaluation.replay.episode import Episode
from flashrt_ros.evaluation.replay.problems import Problems
from flashrt_ros.evaluation.replay.track import Track
from flashrt_ros.evaluation.run import STAGES, RunTopics, absolute, command_of, input_topics
from flashrt_ros.ingest import JointMap
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.ingest.stream import stamp_ns

REFERENCES = ('/demo/recorded_commands', '/recorded_commands')
"""Topics under which a player may repeat what the recording's controller commanded, if nothing else is
said."""


class TopicReader:
    """Reads a bag of topics once. reference: topic of the recorded commands; None looks for one of
    REFERENCES."""

    def __init__(self, bag: Bag, config: RobotConfig, reference: str | None = None) -> None:
        self._bag, self._config = bag, config
        self._names = RunTopics()
        self._joints, self._kinds = JointMap.of(config), ActionKinds.of(config)
        self.problems = Problems(bag.start_ns)
        self._inputs = {absolute(topic): name for name, topic in input_topics(config).items()}
        self._commands = absolute(config.output.topic)
        likely = next((topic for topic in REFERENCES if topic in bag.topics), '')
        self._reference = absolute(reference) if reference else likely
        self._series: dict[str, Track] = defaultdict(lambda: Track(len(self._joints.names)))
        self._stamps: dict[str, list[tuple[int, int]]] = {name: [] for name in self._inputs.values()}
        self._chunks: dict[tuple[int, int], tuple[int, Chunk]] = {}
        self._followed: list[int] = []
        self._stats: list[Any] = []

    def read(self, name: str) -> tuple[Episode, dict[str, list[float]], list[float]]:
        """The episode, stage -> seconds of every chunk, and the inferences [s].

        Raises BagError for a bag in which no node has published.
        """
        if self._names.chunks not in self._bag.topics:
            raise BagError(
                f"there is no topic '{self._names.chunks}' in it: no policy node ran while it was recorded",
                str(self._bag.path),
                'record with: flashrt record, or leave out --from-topics',
            )
        names = self._names
        wanted = {*self._inputs, self._commands, names.chunks, names.stats, names.executing, self._reference}
        topics = [topic for topic in wanted if topic in self._bag.topics]
        for record in self._bag.records(topics, on_damage=self._damaged):
            try:
                self._take(record.topic, record.time_ns, self._bag.decode(record))
            except (BagError, FlashRTError) as error:
                self.problems.note(record.topic, error.what, record.time_ns, type(error).__name__)
        return self._episode(name)

    def _damaged(self, error: BagError) -> None:
        self.problems.note(str(self._bag.path), error.what, self._bag.start_ns, 'damaged')

    def _take(self, topic: str, time_ns: int, message: Any) -> None:
        if topic == self._names.chunks:
            chunk = self._chunk(message)
            self._chunks[chunk.epoch, chunk.sequence] = (time_ns, chunk)
        elif topic == self._names.stats:
            self._stats.append((time_ns, message))
        elif topic == self._names.executing:
            if message.horizon:
                self._followed.append(time_ns)
        elif topic in self._inputs:
            self._input(self._inputs[topic], time_ns, message)
        else:
            kind = 'commands' if topic == self._commands else 'reference'
            self._series[kind].add(time_ns, command_of(message, self._joints.names))

    def _chunk(self, message: Any) -> Chunk:
        return chunk_from_message(message, self._joints.names, self._kinds)

    def _input(self, name: str, time_ns: int, message: Any) -> None:
        stamp = stamp_ns(message.header.stamp)
        self._stamps[name].append((time_ns, stamp))
        if name == STATE:
            self._series['measured'].add(stamp, self._joints.positions(message))

    def _episode(self, name: str) -> tuple[Episode, dict[str, list[float]], list[float]]:
        inputs, width = tuple(self._inputs.values()), len(self._joints.names)
        made = []
        for time_ns, stats in self._stats:
            found = self._chunks.get((stats.epoch, stats.sequence))
            if not stats.blocked and found is not None:
                made.append((time_ns, stats, *found))
        horizons = {chunk.horizon for _, _, _, chunk in made}
        if len(horizons) > 1:
            raise ChunkError(
                'chunks have different horizons', str(self._bag.path), 'record one policy at a time'
            )
        horizon = horizons.pop() if horizons else 0
        ages = [dict(zip(stats.inputs, stats.ages, strict=False)) for _, stats, _, _ in made]
        reasons = sorted({_reason(stats.blocked) for _, stats in self._stats if stats.blocked})
        observed = _times([chunk.observed_ns for _, _, _, chunk in made])
        oldest = np.array([max(age.values(), default=0.0) for age in ages])
        commands_ns = self._series['commands'].times_ns
        ready_ns = _times([time_ns for _, _, time_ns, _ in made])
        measured, reference = self._series['measured'], self._series['reference'] or self._series['measured']
        episode = Episode(
            name=name,
            joints=self._joints.names,
            inputs=inputs,
            begin_ns=self._bag.start_ns,
            end_ns=self._bag.end_ns,
            step_ns=made[0][3].step_ns if made else round(1e9 / self._config.rates.action_rate_hz),
            ticks_ns=_times([time_ns for time_ns, _ in self._stats]),
            blocked=_times([reasons.index(_reason(s.blocked)) if s.blocked else -1 for _, s in self._stats]),
            reasons=tuple(reasons),
            # The oldest input was so old when the inference began.
            looked_ns=observed + np.round(oldest * 1e9).astype(np.int64),
            observed_ns=observed,
            start_ns=_times([chunk.start_ns for _, _, _, chunk in made]),
            ready_ns=ready_ns,
            actions=np.array([chunk.actions for _, _, _, chunk in made]).reshape(len(made), horizon, width),
            ages=np.array([[age.get(i, np.nan) for i in inputs] for age in ages]).reshape(-1, len(inputs)),
            skew=np.array([stats.skew for _, stats, _, _ in made], dtype=np.float64),
            commands_ns=commands_ns,
            commands=self._series['commands'].values,
            # What the limits changed is not told command by command.
            clamps=np.zeros((0, 2), dtype=np.int64),
            seams=_seams(commands_ns, _times(self._followed) if self._followed else ready_ns),
            measured_ns=measured.times_ns,
            measured=measured.values,
            reference_ns=reference.times_ns,
            reference=reference.values,
            reference_topic=self._reference
            if self._series['reference']
            else absolute(self._config.joint_states.topic),
            received_ns={key: _times([r for r, _ in pairs]) for key, pairs in self._stamps.items()},
            stamps_ns={key: _times([s for _, s in pairs]) for key, pairs in self._stamps.items()},
            counts=_counts(self._stats),
            problems=self.problems.as_json(),
        )
        stages = {stage: [float(getattr(stats, stage)) for _, stats, _, _ in made] for stage in STAGES}
        return episode, stages, [float(stats.inference) for _, stats, _, _ in made]


COUNTERS = (
    'chunks',
    'deadline_misses',
    'ticks_blocked',
    'inputs_rejected',
    'inferences_failed',
    'frames_unused',
)


def _counts(stats: list[Any]) -> dict[str, int]:
    return {name: int(getattr(stats[-1][1], name)) for name in COUNTERS} if stats else {}


def _seams(commands_ns: np.ndarray, followed_ns: np.ndarray) -> np.ndarray:
    """Numbers of the commands that were the first after the streamer had begun to follow another chunk.

    A bag without `executing_chunk` has only the times when chunks were published, one command early or late.
    """
    first = np.searchsorted(commands_ns, followed_ns, side='right')
    return np.unique(first[first < len(commands_ns)])


def _reason(blocked: str) -> str:
    """The input that blocked, without the figures."""
    return blocked.partition(':')[0]


def _times(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)
