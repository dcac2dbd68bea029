"""What came in on the topics of the configuration while the doctor listened, and what that means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flashrt_ros.doctor.finding import Finding, Level
from flashrt_ros.errors import ObservationError
from flashrt_ros.ingest import Blocked, Taken
from flashrt_ros.ingest.gates import FORGOTTEN_SIM_TIME_S

MANY_DROPS = 0.02
"""Part of the messages dropped from which on it is no accident."""

UNEVEN = 3.0
"""A gap of so many usual gaps is a message lost or late."""


@dataclass
class TopicSeen:
    """One input. wanted, offered: message types. publishers: how many, and whether each sends best effort.

    times_s: monotonic times of reception. ages_s: age of each message when it came. drops: why messages were
    dropped. about: what the last one was, for people. fault: why the last one cannot be used.
    """

    name: str
    topic: str
    wanted: str
    offered: Sequence[str]
    publishers: int
    max_age_s: float
    times_s: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    about: str = ''
    fault: ObservationError | None = None


def topic_findings(seen: TopicSeen, listened_s: float) -> Iterator[Finding]:
    """Publishers, type, rate, age and losses of one input."""
    subject = f'input {seen.name}'
    others = [kind for kind in seen.offered if kind != seen.wanted]
    if others and seen.wanted not in seen.offered:
        fix = "set the camera's transport (raw or compressed), or the topic, to what is published"
        yield Finding(Level.FAIL, subject, f"'{seen.topic}' has {others[0]}, not {seen.wanted}", fix)
        return
    if not seen.publishers:
        fix = 'start the driver, or correct the topic or namespace; ros2 topic list shows what there is'
        yield Finding(Level.FAIL, subject, f"nobody publishes on '{seen.topic}'", fix)
        return
    if not seen.times_s:
        yield _silent(seen, subject, listened_s)
        return
    yield _rate(seen, subject, listened_s)
    if seen.fault is not None:
        yield Finding(Level.FAIL, subject, seen.fault.what, seen.fault.fix)
    if seen.publishers > 1:
        fix = 'give each its own topic: what they send is mixed'
        yield Finding(Level.WARN, subject, f"{seen.publishers} publishers on '{seen.topic}'", fix)
    if len(seen.drops) > MANY_DROPS * (len(seen.drops) + len(seen.times_s)):
        yield Finding(
            Level.FAIL, subject, f'{len(seen.drops)} dropped: {seen.drops[-1]}', 'see docs/cameras.md'
        )
    yield _age(seen, subject)


def _silent(seen: TopicSeen, subject: str, listened_s: float) -> Finding:
    if seen.drops:
        found = f'all {len(seen.drops)} messages were dropped: {seen.drops[-1]}'
        return Finding(Level.FAIL, subject, found, 'see docs/cameras.md')
    found = f"'{seen.topic}' has {seen.publishers} publisher(s), and nothing came in {listened_s:g} s"
    fix = (
        'wake the sensor; set the shared-memory profile for the publisher, too, and compare QoS '
        '(ros2 topic info -v)'
    )
    return Finding(Level.FAIL, subject, found, fix)


def _rate(seen: TopicSeen, subject: str, listened_s: float) -> Finding:
    count = len(seen.times_s)
    rate = count / listened_s
    if count < 3:
        fix = 'raise its rate, or max_age_s if that is how it is meant'
        return Finding(Level.WARN, subject, f'{count} message(s) in {listened_s:g} s', fix)
    gaps = np.diff(seen.times_s)
    usual, longest = float(np.median(gaps)), float(gaps.max())
    about = f', {seen.about}' if seen.about else ''
    found = f'{rate:.1f} Hz, longest gap {longest * 1e3:.0f} ms{about}'
    if longest > max(seen.max_age_s, UNEVEN * usual):
        fix = 'look at the load of this computer, the network and the driver; reliable QoS does not help'
        return Finding(Level.WARN, subject, found, fix)
    return Finding(Level.OK, subject, found)


def _age(seen: TopicSeen, subject: str) -> Finding:
    p50, p99 = (float(value) for value in np.percentile(seen.ages_s, (50, 99)))
    found = f'age on arrival {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, max_age_s {seen.max_age_s:g}'
    if abs(p50) > FORGOTTEN_SIM_TIME_S:
        fix = 'start all nodes with the same use_sim_time; let the driver stamp its messages'
        return Finding(Level.FAIL, subject, f'stamps are {p50:.0f} s from the clock', fix)
    if p99 > seen.max_age_s or p50 < 0:
        fix = 'synchronise the clocks (chrony), or raise max_age_s to what the sensor can do'
        return Finding(Level.WARN, subject, found, fix)
    return Finding(Level.OK, subject, found)


def clock_finding(clock_publishers: int, simulated: bool) -> Finding:
    """simulated: whether the doctor, and so presumably the nodes, go by /clock."""
    subject = 'clock'
    if simulated and not clock_publishers:
        fix = 'start the simulation or ros2 bag play --clock, or leave --use-sim-time away'
        return Finding(Level.FAIL, subject, 'simulated, and nobody publishes /clock', fix)
    if clock_publishers and not simulated:
        fix = 'give the nodes use_sim_time:=true, and this command --use-sim-time'
        return Finding(Level.WARN, subject, 'the system clock, but somebody publishes /clock', fix)
    return Finding(Level.OK, subject, 'simulated (/clock)' if simulated else 'the system clock')


def outcome_finding(outcome: Taken | Blocked) -> Finding:
    """Whether an inference could start now, decided by the same code as in the node."""
    subject = 'inference'
    if isinstance(outcome, Taken):
        sizes = {view: getattr(image, 'shape', None) for view, image in outcome.observation.images.items()}
        shown = ', '.join(f'{view} {shape[1]} x {shape[0]}' for view, shape in sizes.items() if shape)
        joints = len(outcome.observation.state)
        found = f'could start: {shown or len(sizes)}, {joints} joints, skew {outcome.skew_s * 1e3:.1f} ms'
        return Finding(Level.OK, subject, found)
    fix = FIXES.get(outcome.refusal.kind, 'see the lines above')
    return Finding(Level.FAIL, subject, f'would wait: {outcome.reason}', fix)


FIXES: Mapping[str, str] = {
    'missing': 'see the line of that input',
    'unstamped': 'let the driver fill header.stamp',
    'stale': 'see the line of that input',
    'future': 'synchronise the clocks (chrony), or use the same use_sim_time everywhere',
    'skewed': 'synchronise the sensors, or raise gates.max_skew_s',
    'invalid': '',  # the reason has it
    'prompt': "set 'prompt' in the YAML or publish it",
}
"""Kind of refusal -> what to do."""
