"""Gates in front of the policy: present, stamped, fresh, and together in time. Times are ROS time in ns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.ingest.stream import Sample, Stream

_SECOND = 1_000_000_000

FORGOTTEN_SIM_TIME_S = 3600.0
"""A stamp this far from the clock is another time base, not a slow sensor."""

YEAR_2000_NS = 946_684_800 * _SECOND
"""A clock that says less counts from the start of something; no computer's clock is so wrong."""

SLOWEST_TRANSPORT_S = 2.0
"""No message is under way for longer on one network; clocks that nobody synchronises differ by more."""


@dataclass(frozen=True)
class Limits:
    """max_age_s: input name -> oldest age accepted. max_skew_s: between stamps. max_future_s: beyond now."""

    max_age_s: Mapping[str, float]
    max_skew_s: float
    max_future_s: float

    @classmethod
    def of(cls, config: RobotConfig) -> Limits:
        ages = {view: camera.max_age_s for view, camera in config.cameras.items()}
        ages[STATE] = config.joint_states.max_age_s
        return cls(ages, config.gates.max_skew_s, config.gates.max_future_s)


@dataclass(frozen=True)
class Refusal:
    """Why inference must wait; the same input and kind is the same episode.

    kind: missing, unstamped, stale, future, skewed, invalid or prompt.
    """

    input: str
    kind: str
    detail: str


def check_sample(stream: Stream, sample: Sample | None, now_ns: int, limits: Limits) -> Refusal | None:
    """The first reason, if any, why the latest message of one input cannot be used."""
    if sample is None:
        dropped = f', but one that was dropped: {stream.last_drop}' if stream.last_drop else ''
        return Refusal(stream.name, 'missing', f"no message on '{stream.topic}' yet{dropped}")
    if sample.stamp_ns == 0:
        return Refusal(stream.name, 'unstamped', 'its header.stamp is 0: let the driver stamp its messages')
    age = (now_ns - sample.stamp_ns) / _SECOND
    limit = limits.max_age_s[stream.name]
    if age < -limits.max_future_s:
        jumped = 'the clock jumped back' if sample.received_ns > now_ns else ''
        hint = jumped or _other_time_base(sample.stamp_ns, now_ns)
        hint = hint or 'the clocks of sensor and computer differ'
        return Refusal(stream.name, 'future', f'its stamp is {-age:.3f} s in the future: {hint}')
    if age > limit:
        hint = _other_time_base(sample.stamp_ns, sample.received_ns) or _why_stale(stream, sample, age)
        return Refusal(stream.name, 'stale', f'it is {age:.3f} s old, max_age_s is {limit:g}: {hint}')
    if sample.fault:
        return Refusal(stream.name, 'invalid', sample.fault)
    return None


def check_skew(stamps_ns: Mapping[str, int], limits: Limits) -> Refusal | None:
    """Whether the inputs are too far apart in time. stamps_ns: input name -> stamp."""
    oldest, newest = min(stamps_ns, key=stamps_ns.__getitem__), max(stamps_ns, key=stamps_ns.__getitem__)
    skew = (stamps_ns[newest] - stamps_ns[oldest]) / _SECOND
    if skew <= limits.max_skew_s:
        return None
    return Refusal(
        oldest, 'skewed', f'it is {skew:.3f} s behind {newest}, max_skew_s is {limits.max_skew_s:g}'
    )


def _why_stale(stream: Stream, sample: Sample, age: float) -> str:
    transport = (sample.received_ns - sample.stamp_ns) / _SECOND
    if stream.last_drop:
        return f'the newer one was dropped: {stream.last_drop}'
    if transport <= age / 2:
        return 'no newer message has come'
    differ = ', or the clocks of sensor and computer differ' if transport > SLOWEST_TRANSPORT_S else ''
    return f'it took {transport:.3f} s to arrive{differ}'


def _other_time_base(stamp_ns: int, clock_ns: int) -> str:
    """What a stamp far from the clock says about the time that sensor and node go by; '' if it is near."""
    if abs(clock_ns - stamp_ns) / _SECOND <= FORGOTTEN_SIM_TIME_S:
        return ''
    if clock_ns == 0:
        return 'this node goes by simulated time (use_sim_time), and nobody publishes /clock'
    if stamp_ns < YEAR_2000_NS < clock_ns:
        return 'it counts from the start of a simulation: set use_sim_time for this node'
    if clock_ns < YEAR_2000_NS < stamp_ns:
        return (
            'this node goes by simulated time and the sensor does not: set use_sim_time for both or neither'
        )
    return 'another time base, is use_sim_time right?'
