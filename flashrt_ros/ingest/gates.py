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
        hint = jumped or _clock_hint(age) or 'the clocks of sensor and computer differ'
        return Refusal(stream.name, 'future', f'its stamp is {-age:.3f} s in the future: {hint}')
    if age > limit:
        transport = (sample.received_ns - sample.stamp_ns) / _SECOND
        late = f'it took {transport:.3f} s to arrive' if transport > age / 2 else 'no newer message has come'
        newer = f'the newer one was dropped: {stream.last_drop}' if stream.last_drop else late
        hint = _clock_hint(transport) or newer
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


def _clock_hint(age: float) -> str:
    """What a stamp from another time base usually means."""
    return 'another time base, is use_sim_time right?' if abs(age) > FORGOTTEN_SIM_TIME_S else ''
