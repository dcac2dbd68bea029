"""What the policy node would have seen at each of its ticks: the feed through the ingest, on the bag's
time."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control.pacing import Deadlines
from flashrt_ros.errors import FlashRTError, ObservationError
from flashrt_ros.evaluation.bag import Record
from flashrt_ros.evaluation.replay.feed import REFERENCE, TIME, Arrival, Inputs
from flashrt_ros.evaluation.run import command_of
from flashrt_ros.ingest import Blocked, Ingest, Taken
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.ingest.stream import stamp_ns

SILENCE_NS = 600 * 10**9
"""Where no message comes for so long a recording was interrupted, or a time in the bag is damaged: nothing is
looked at in the rest of the gap."""


@dataclass(frozen=True)
class Moved:
    """Where the robot was. time_ns: reception. stamp_ns: of the measurement. positions: [D], rad or m."""

    time_ns: int
    stamp_ns: int
    positions: np.ndarray


@dataclass(frozen=True)
class Commanded:
    """What the recording's own controller commanded. positions: [D], rad or m."""

    time_ns: int
    positions: np.ndarray


@dataclass(frozen=True)
class Looked:
    """A tick of the policy. frames: view -> the message as it lies in the bag, of what was taken."""

    time_ns: int
    outcome: Taken | Blocked
    frames: dict[str, Record] = field(default_factory=dict)


@dataclass(frozen=True)
class Passed:
    """Nothing but time: whoever executes commands may do so up to here."""

    time_ns: int


Event = Moved | Commanded | Looked | Passed


class Latency:
    """How long an inference keeps the policy, on the bag's time.

    given_ns: the same for all, or None for as long as each took: then whoever infers must set `measured_ns`
    before asking for the next event.
    """

    def __init__(self, given_s: float | None) -> None:
        self.given_ns = None if given_s is None else round(given_s * 1e9)
        self.measured_ns = 0

    @property
    def latest_ns(self) -> int:
        return self.measured_ns if self.given_ns is None else self.given_ns


@dataclass
class InputTimes:
    """received_ns, stamps_ns: of every message of one input, in the order of reception."""

    received_ns: array[int] = field(default_factory=lambda: array('q'))
    stamps_ns: array[int] = field(default_factory=lambda: array('q'))


class Watch:
    """Iterating gives the events of one bag in the order of time; ticks keep the node's deadlines.

    A message received at the very time of a tick is seen by it. inputs: input name -> its times so far.
    pool: see `Ingest`. due: whether the planner wants an inference now, see `Planner.due`; a tick at which it
    does not is none.
    """

    def __init__(
        self,
        feed: Inputs,
        config: RobotConfig,
        latency: Latency,
        due: Callable[[int], bool] = lambda _: True,
        pool: Executor | None = None,
    ) -> None:
        self.ingest = Ingest(config, pool)
        self.inputs = {name: InputTimes() for name in feed.sources.inputs}
        self.skipped = 0
        self._feed, self._latency, self._due = feed, latency, due
        self._joints = config.joint_names
        begin_ns = feed.bag.start_ns
        self._deadlines = Deadlines(round(1e9 / config.rates.chunk_rate_hz), begin_ns)
        self._free_ns = self._heard_ns = begin_ns
        self._frames: dict[str, Record] = {}

    def __iter__(self) -> Iterator[Event]:
        for arrival in self._feed:
            yield from self._ticks(until_ns=arrival.time_ns)
            self._heard_ns = arrival.time_ns
            event = self._receive(arrival)
            if event is not None:
                yield event
        yield from self._ticks(until_ns=self._feed.bag.end_ns + 1)

    def _ticks(self, until_ns: int) -> Iterator[Looked]:
        """Every tick before this time. As in the node, one that comes while an inference runs is late."""
        silent_ns = self._heard_ns + SILENCE_NS
        while (now_ns := max(self._deadlines.next_ns, self._free_ns)) < until_ns:
            if now_ns > silent_ns:
                self._pass_over(now_ns, until_ns)
                return
            _, skipped = self._deadlines.meet(now_ns)
            self.skipped += skipped
            if not self._due(now_ns):
                continue
            outcome = self.ingest.observe(now_ns)
            if isinstance(outcome, Taken) and not self._due(outcome.stamp_ns):
                continue  # what the cameras saw is from before the end of the motion
            frames = dict(self._frames) if isinstance(outcome, Taken) else {}
            if isinstance(outcome, Blocked) and outcome.refusal.kind not in ('missing', 'prompt'):
                self._feed.problems.note(
                    self._feed.sources.inputs.get(outcome.refusal.input, outcome.refusal.input),
                    f'no chunk: {outcome.refusal.detail}',
                    now_ns,
                    kind=outcome.refusal.kind,
                )
            yield Looked(now_ns, outcome, frames)
            if isinstance(outcome, Taken):
                self._free_ns = now_ns + self._latency.latest_ns

    def _pass_over(self, now_ns: int, until_ns: int) -> None:
        gap_s = (until_ns - self._heard_ns) / 1e9
        what = f'no message for {gap_s:.0f} s: a pause of the recording, or a damaged time'
        self._feed.problems.note('bag', what, now_ns, kind='silence')
        self._deadlines.meet(until_ns)

    def _receive(self, arrival: Arrival) -> Event | None:
        name, message = arrival.name, arrival.message
        if name == TIME:
            return Passed(arrival.time_ns)
        if name == REFERENCE:
            return self._command(arrival)
        stamp = stamp_ns(message.header.stamp)
        times = self.inputs[name]
        if times.stamps_ns and stamp < times.stamps_ns[-1]:
            back = (times.stamps_ns[-1] - stamp) / 1e9
            self._note(arrival, f'its stamp goes back by {back:.3f} s', 'back')
        times.received_ns.append(arrival.time_ns)
        times.stamps_ns.append(stamp)
        self.ingest.offer(name, message, arrival.time_ns)
        if name != STATE:
            self._frames[name] = arrival.record
            return None
        try:
            return Moved(arrival.time_ns, stamp, self.ingest.joints.positions(message))
        except ObservationError as error:
            self._note(arrival, error.what, 'joints')
            return None

    def _command(self, arrival: Arrival) -> Commanded | None:
        try:
            positions = command_of(arrival.message, self._joints)
        except FlashRTError as error:
            self._note(arrival, error.what, 'reference')
            return None
        return Commanded(arrival.time_ns, positions)

    def _note(self, arrival: Arrival, what: str, kind: str) -> None:
        self._feed.problems.note(arrival.record.topic, what, arrival.time_ns, kind)
