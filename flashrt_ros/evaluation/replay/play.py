"""Plays one bag into a policy on the bag's own time, and returns the Episode.

Nothing depends on the machine: with a given latency the same bag, configuration and seed give the same
arrays. With `latency_s=None` each inference keeps the policy busy for as long as it took here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control import Chunk, Plan, Planner, PlannerSettings
from flashrt_ros.errors import FlashRTError
from flashrt_ros.evaluation.replay.ahead import ahead
from flashrt_ros.evaluation.replay.episode import Episode
from flashrt_ros.evaluation.replay.feed import Inputs
from flashrt_ros.evaluation.replay.robot import ReplayedRobot
from flashrt_ros.evaluation.replay.track import Track
from flashrt_ros.evaluation.replay.watch import Commanded, Event, Latency, Looked, Moved, Passed, Watch
from flashrt_ros.ingest import Blocked, JointMap, Taken
from flashrt_ros.policy import Pipelined, Policy

AHEAD = 16
"""Events read and decoded, and as many with their pictures resized, before the policy needs them. Each may
hold the pictures of all cameras."""

TIMED = ('transport', 'wait', 'take')
"""Stages before the policy's own, as in InferenceStats."""


Planned = Plan | FlashRTError | None
"""What the policy made of an observation; None where it has not been asked yet."""


class Listener(Protocol):
    """Told what happens while it happens: a results bag, or a progress bar."""

    def looked(self, looked: Looked, plan: Plan | None, ready_ns: int) -> None:
        """A tick is over. plan: None where there is no chunk."""

    def commanded(self, time_ns: int, positions: np.ndarray) -> None:
        """A command was sent."""


@dataclass
class Timings:
    """What was measured on this machine: stage -> seconds of every chunk."""

    stages: dict[str, list[float]] = field(default_factory=dict)
    inference: list[float] = field(default_factory=list)

    def note(self, taken: Taken, plan: Plan) -> None:
        before = {'transport': taken.transport_s, 'wait': taken.wait_s, 'take': taken.take_s}
        for stage, seconds in (before | dict(plan.timings)).items():
            self.stages.setdefault(stage, []).append(seconds)
        self.inference.append(plan.inference_s)


@dataclass(frozen=True)
class Made:
    """A chunk, and what of its observation is kept. ages: [I] seconds, in the order of the inputs."""

    looked_ns: int
    ready_ns: int
    ages: np.ndarray
    skew_s: float
    chunk: Chunk


class Player:
    """Plays what one feed gives. listeners are told of every tick and command. live: the inputs depend on the
    commands, so nothing is read ahead."""

    def __init__(
        self,
        feed: Inputs,
        config: RobotConfig,
        policy: Policy,
        latency_s: float | None = 0.0,
        listeners: tuple[Listener, ...] = (),
        live: bool = False,
    ) -> None:
        self._feed, self._config, self._listeners = feed, config, listeners
        self._bag, self._sources = feed.bag, feed.sources
        self._latency = Latency(latency_s)
        settings = PlannerSettings.of(config)
        # Where a tick depends on the inference before it, nothing can be read ahead of it.
        self._inline = latency_s is None or settings.strategy.waits or live
        self._guided = bool(settings.strategy.guidance) or settings.strategy.future
        self._pool = None if self._inline else ThreadPoolExecutor(len(config.cameras), 'decoding')
        self._watch = Watch(self._feed, config, self._latency, self._due, self._pool)
        self._planner = Planner(
            policy, JointMap.of(config), config.rates.action_rate_hz, settings, self._latency.given_ns
        )
        self._policy, self._waits = policy, settings.strategy.waits
        self._most_begun = int(isinstance(policy, Pipelined))
        self._robot = ReplayedRobot(config, self._bag.start_ns)
        self.timings = Timings()
        width = len(config.joint_names)
        self._looks: list[tuple[int, str]] = []
        self._made: list[Made] = []
        self._moves, self._reference = Track(width), Track(width)
        self._failed = 0
        self._told = 0

    def play(self, name: str, progress: Callable[[float], None] = lambda _: None) -> Episode:
        """progress: called with the seconds of the bag that are done."""
        try:
            with self._events() as events:
                for event, planned in events:
                    self._advance(event.time_ns)
                    self._take(event, planned)
                    if isinstance(event, Looked):
                        progress((event.time_ns - self._bag.start_ns) / 1e9)
        finally:
            if self._pool is not None:
                self._pool.shutdown()
        self._advance(self._bag.end_ns + 1)
        progress(self._bag.duration_s)
        return self._episode(name)

    @contextmanager
    def _events(self) -> Iterator[Iterator[tuple[Event, Planned]]]:
        """Events, with what the policy made of them where that does not depend on what the robot does.

        Where the ticks are known beforehand, each in a thread of its own: reading and decoding, resizing, the
        policy, and, for whoever iterates, the robot.
        """
        if self._inline:
            yield ((event, None) for event in self._watch)
            return
        with ahead(self._watch, AHEAD) as seen, ahead(map(self._shrunk, seen), AHEAD) as small:
            if self._guided:
                yield ((event, None) for event in small)
                return
            with ahead(self._planned(small), AHEAD) as planned:
                yield planned

    def _shrunk(self, event: Event) -> Event:
        """Pictures resized beforehand. What is wrong with them, the inference will say."""
        if not isinstance(event, Looked) or not isinstance(event.outcome, Taken):
            return event
        try:
            observation = self._policy.shrink(event.outcome.observation)
        except FlashRTError:
            return event
        return replace(event, outcome=replace(event.outcome, observation=observation))

    def _planned(self, events: Iterable[Event]) -> Iterator[tuple[Event, Planned]]:
        """Events with their plans, the same in the same order. One inference is begun before the one before
        it is over, if the policy can."""
        waiting: deque[tuple[Event, Callable[[], Planned] | None]] = deque()
        begun = 0
        for event in events:
            taken = event.outcome if isinstance(event, Looked) else None
            if isinstance(event, Looked) and isinstance(taken, Taken):
                waiting.append((_without_pictures(event), self._begin(taken)))
                begun += 1
            else:
                waiting.append((event, None))
            while waiting and (begun > self._most_begun or waiting[0][1] is None):
                begun -= waiting[0][1] is not None
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())

    def _begin(self, taken: Taken) -> Callable[[], Planned]:
        """Begin an inference. What is returned waits for it, and gives its error instead of raising."""
        try:
            finish = self._planner.submit(taken)
        except FlashRTError as error:
            refused = error
            return lambda: refused
        return lambda: _or_error(finish)

    def _try(self, taken: Taken) -> Plan | FlashRTError:
        return _or_error(lambda: self._planner.plan(taken))

    def _due(self, now_ns: int) -> bool:
        """Asked by the watch, which runs ahead of the robot unless the strategy waits for it."""
        if not self._waits:
            return True
        self._advance(now_ns)
        return self._planner.due(now_ns)

    def _advance(self, now_ns: int) -> None:
        """Let the robot move up to now, and tell the planner what it follows, as the streamer would."""
        self._robot.advance(now_ns)
        entry = self._robot.entry
        self._planner.executing(entry.chunk if entry else None, entry.begin_ns if entry else 0)
        self._tell_commands()

    def _take(self, event: Event, planned: Planned) -> None:
        if isinstance(event, Moved):
            self._robot.moved(event.stamp_ns, event.positions)
            self._moves.add(event.stamp_ns, event.positions)
        elif isinstance(event, Passed):
            pass
        elif isinstance(event, Commanded):
            self._reference.add(event.time_ns, event.positions)
        elif isinstance(event.outcome, Blocked):
            self._look(event, None, f'{event.outcome.refusal.input}: {event.outcome.refusal.kind}')
        else:
            self._infer(event, event.outcome, planned or self._try(event.outcome))

    def _infer(self, looked: Looked, taken: Taken, plan: Plan | FlashRTError) -> None:
        if isinstance(plan, FlashRTError):
            self._failed += 1
            kind = type(plan).__name__
            self._feed.problems.note('policy', f'inference failed: {plan}', looked.time_ns, kind)
            self._latency.measured_ns = 0
            self._look(looked, None, f'policy: {kind}')
            return
        self._latency.measured_ns = round(plan.inference_s * 1e9)
        ready_ns = looked.time_ns + self._latency.latest_ns
        self._robot.send(plan.chunk, ready_ns)
        self._planner.published(plan, ready_ns)
        self.timings.note(taken, plan)
        ages = np.array([taken.ages_s[name] for name in self._sources.inputs])
        self._made.append(Made(looked.time_ns, ready_ns, ages, taken.skew_s, plan.chunk))
        self._look(looked, plan, '', ready_ns)

    def _look(self, looked: Looked, plan: Plan | None, reason: str, ready_ns: int = 0) -> None:
        self._looks.append((looked.time_ns, reason))
        for listener in self._listeners:
            listener.looked(looked, plan, ready_ns)

    def _tell_commands(self) -> None:
        while self._told < len(self._robot.commands):
            for listener in self._listeners:
                listener.commanded(*self._robot.commands[self._told])
            self._told += 1

    def _episode(self, name: str) -> Episode:
        joints, inputs = self._config.joint_names, tuple(self._sources.inputs)
        width = len(joints)
        reasons = sorted({reason for _, reason in self._looks if reason})
        made, chunks = self._made, [one.chunk for one in self._made]
        horizon = chunks[0].horizon if chunks else 0
        counts = self._robot.counts
        counts |= {'ticks_skipped': self._watch.skipped, 'inferences_failed': self._failed}
        for key, stream in self._watch.ingest.streams.items():
            counts |= {f'{key}: received': stream.counts.received, f'{key}: rejected': stream.counts.rejected}
        reference = self._reference or self._moves
        return Episode(
            name=name,
            joints=joints,
            inputs=inputs,
            begin_ns=self._bag.start_ns,
            end_ns=self._bag.end_ns,
            step_ns=round(1e9 / self._config.rates.action_rate_hz),
            ticks_ns=_times(time_ns for time_ns, _ in self._looks),
            blocked=np.array([reasons.index(r) if r else -1 for _, r in self._looks], dtype=np.int64),
            reasons=tuple(reasons),
            looked_ns=_times(one.looked_ns for one in made),
            observed_ns=_times(chunk.observed_ns for chunk in chunks),
            start_ns=_times(chunk.start_ns for chunk in chunks),
            ready_ns=_times(one.ready_ns for one in made),
            actions=np.array([chunk.actions for chunk in chunks]).reshape(len(chunks), horizon, width),
            ages=np.array([one.ages for one in made]).reshape(-1, len(inputs)),
            skew=np.array([one.skew_s for one in made], dtype=np.float64),
            commands_ns=self._robot.commands.times_ns,
            commands=self._robot.commands.values,
            clamps=self._robot.clamps.values.astype(np.int64),
            seams=_times(self._robot.seams),
            measured_ns=self._moves.times_ns,
            measured=self._moves.values,
            reference_ns=reference.times_ns,
            reference=reference.values,
            reference_topic=self._sources.reference if self._reference else self._sources.inputs['state'],
            received_ns={k: _times(v.received_ns) for k, v in self._watch.inputs.items()},
            stamps_ns={k: _times(v.stamps_ns) for k, v in self._watch.inputs.items()},
            counts=counts,
            problems=self._feed.problems.as_json(),
        )


def _finished(event: Event, finish: Callable[[], Planned] | None) -> tuple[Event, Planned]:
    return event, None if finish is None else finish()


def _or_error(plan: Callable[[], Plan]) -> Plan | FlashRTError:
    try:
        return plan()
    except FlashRTError as error:
        return error


def _without_pictures(looked: Looked) -> Looked:
    """The same without the decoded pictures, which nobody needs once the policy has seen them."""
    taken = looked.outcome
    assert isinstance(taken, Taken)
    kept = replace(taken, observation=replace(taken.observation, images={}))
    return replace(looked, outcome=kept)


def _times(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), dtype=np.int64)
