"""When the gripper opens and closes, in the commands and in the recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashrt_ros.evaluation.replay.episode import Episode

NAMES = ('gripper', 'finger', 'claw', 'jaw')
"""A joint with one of these in its name is taken for a gripper."""

LOW, HIGH = 0.35, 0.65
"""Parts of the recorded range that must be crossed, one after the other, for an event: hysteresis."""

LEAST_RANGE = 0.02
"""rad or m; a gripper that moves less in the recording does nothing."""

MATCH_S = 2.0
"""A commanded event this far from a recorded one is another event."""


@dataclass(frozen=True)
class GripperEvents:
    """recorded_ns: of matched events; delays: float64 seconds, commanded minus recorded. missed: recorded
    events that were not commanded. extra: commanded ones that were not recorded."""

    recorded_ns: np.ndarray
    delays: np.ndarray
    missed: int
    extra: int


def gripper_joint(joints: tuple[str, ...]) -> int | None:
    """Column of the first joint whose name says that it is a gripper."""
    named = (i for i, name in enumerate(joints) if any(word in name.lower() for word in NAMES))
    return next(named, None)


def gripper_events(episode: Episode, column: int) -> GripperEvents:
    recorded, commanded = episode.reference[:, column], episode.commands[:, column]
    empty = np.zeros(0)
    if not recorded.size or np.ptp(recorded) < LEAST_RANGE or not commanded.size:
        return GripperEvents(empty.astype(np.int64), empty, 0, 0)
    low = recorded.min() + LOW * np.ptp(recorded)
    high = recorded.min() + HIGH * np.ptp(recorded)
    wanted = crossings(episode.reference_ns, recorded, low, high)
    begin, end = episode.commands_ns[0], episode.commands_ns[-1]
    wanted = [event for event in wanted if begin <= event[0] <= end]
    found = crossings(episode.commands_ns, commanded, low, high)
    matched: list[tuple[int, float]] = []
    for time_ns, opens in wanted:
        candidates = [
            event for event in found if event[1] == opens and abs(event[0] - time_ns) < MATCH_S * 1e9
        ]
        if candidates:
            nearest = min(candidates, key=lambda event: abs(event[0] - time_ns))
            found.remove(nearest)
            matched.append((time_ns, (nearest[0] - time_ns) / 1e9))
    times = np.array([time_ns for time_ns, _ in matched], dtype=np.int64)
    return GripperEvents(times, np.array([d for _, d in matched]), len(wanted) - len(matched), len(found))


def crossings(times_ns: np.ndarray, values: np.ndarray, low: float, high: float) -> list[tuple[int, bool]]:
    """(time, whether it rose) of every change from below `low` to above `high` or back, when it is
    complete."""
    events = []
    side: bool | None = None
    for time_ns, value in zip(times_ns.tolist(), values.tolist(), strict=True):
        now = True if value > high else False if value < low else side
        if side is not None and now is not side:
            events.append((time_ns, bool(now)))
        side = now
    return events
