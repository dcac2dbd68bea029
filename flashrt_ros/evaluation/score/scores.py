"""Every metric of an evaluation by name, `group.column.statistic`, each with its interval.

    action_error.all.mae            of all joints together
    action_error.gripper.p90        of one joint
    blocked.all.mean                part of the ticks that gave no chunk

A column is a joint, an input, a stage, or 'all'. For every metric less is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashrt_ros.evaluation.replay.episode import Episode
from flashrt_ros.evaluation.score import actions, gripper, motion
from flashrt_ros.evaluation.score.sample import Estimate, Resampling, Sample, estimate, pooled

POSITION, JERK, SHARE, SECONDS = 'rad or m', 'rad/s^3 or m/s^3', '', 's'
BLOCK_S, MOST_BLOCKS = 1.0, 1000
"""Least length of a block of time where there is only one episode, and how many there are at most."""


@dataclass(frozen=True)
class Group:
    """title: for people. unit: of the values. statistics: which are given (see `sample.STATISTICS`)."""

    title: str
    unit: str
    statistics: tuple[str, ...]


GROUPS = {
    'action_error': Group(
        'Predicted rows against recorded commands', POSITION, ('mae', 'rmse', 'p50', 'p90', 'p99')
    ),
    'command_error': Group(
        'Commands against recorded commands', POSITION, ('mae', 'rmse', 'p50', 'p90', 'p99')
    ),
    'consistency': Group('Chunk against the chunk before it', POSITION, ('mae', 'p90', 'p99')),
    'seam': Group('Jump of the command at a new chunk', POSITION, ('mae', 'p90', 'max')),
    'jerk': Group('Jerk of the commands', JERK, ('rmse', 'p99')),
    'position_clamp': Group('Commands changed by a position limit', SHARE, ('mean',)),
    'motion_clamp': Group('Commands changed by a step, velocity or acceleration limit', SHARE, ('mean',)),
    'gripper_delay': Group('Gripper event, commanded against recorded', SECONDS, ('mae', 'max')),
    'blocked': Group('Ticks without a chunk', SHARE, ('mean',)),
    'age': Group('Age of an input when the inference began', SECONDS, ('p50', 'p99')),
    'skew': Group('Spread of the stamps of one observation', SECONDS, ('p50', 'p99')),
    'silent': Group('Time without a command, after the first', SHARE, ('mean',)),
    'staleness': Group('Observation to chunk at the executor', SECONDS, ('p50', 'p99')),
}

Values = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
"""(group, column) -> values [n] and the times that they belong to [n, ns]."""


def values_of(episode: Episode) -> Values:
    """Every value that a metric is made of."""
    found: Values = {}
    when = np.broadcast_to(episode.looked_ns[:, None], episode.actions.shape[:2])
    _by_joint(found, 'action_error', actions.action_errors(episode), when, episode.joints)
    _by_joint(found, 'consistency', actions.disagreement(episode), when[1:], episode.joints)
    _by_joint(found, 'command_error', actions.command_errors(episode), episode.commands_ns, episode.joints)
    seams, jumps = motion.seam_jumps(episode)
    _by_joint(found, 'seam', jumps, episode.commands_ns[seams], episode.joints)
    times, jerk = motion.jerk(episode.commands_ns, episode.commands)
    _by_joint(found, 'jerk', jerk, times, episode.joints)
    for column, name in enumerate(('position_clamp', 'motion_clamp')):
        # A bag of topics does not tell them command by command.
        told = episode.clamps[:, column]
        found[name, 'all'] = ((told > 0).astype(np.float64), episode.commands_ns[: len(told)])
    found['silent', 'all'] = motion.silence(episode)
    joint = gripper.gripper_joint(episode.joints)
    if joint is not None:
        events = gripper.gripper_events(episode, joint)
        found['gripper_delay', 'all'] = (events.delays, events.recorded_ns)
    ready = episode.ticks_ns >= first_complete_ns(episode)
    blocked = (episode.blocked[ready] >= 0).astype(np.float64)
    found['blocked', 'all'] = (blocked, episode.ticks_ns[ready])
    for column, name in enumerate(episode.inputs):
        told_age = np.isfinite(episode.ages[:, column])
        found['age', name] = (episode.ages[told_age, column], episode.looked_ns[told_age])
    found['skew', 'all'] = (episode.skew, episode.looked_ns)
    found['staleness', 'all'] = ((episode.ready_ns - episode.observed_ns) / 1e9, episode.looked_ns)
    return found


def first_complete_ns(episode: Episode) -> int:
    """When every input had come once; before that no chunk can be expected."""
    firsts = [int(times[0]) for times in episode.received_ns.values() if times.size]
    return max(firsts, default=episode.begin_ns)


@dataclass(frozen=True)
class Scores:
    """metrics: name -> Estimate. rows: [H, D] arrays 'mae', 'rmse' of the action error by row of the horizon,
    and [H] 'low', 'high' of its mae over all joints. over: what the intervals are over. units: how many."""

    metrics: dict[str, Estimate]
    rows: dict[str, np.ndarray]
    over: str
    units: int


def score(episodes: Sequence[Episode], further: Sequence[Values] = ()) -> Scores:
    """Pool the episodes. further: values of each episode from elsewhere, such as measured stages."""
    resampling, units_of = divide(episodes)
    samples = collect(episodes, units_of, further)
    metrics = {
        f'{group}.{column}.{name}': estimate(sample, name, resampling)
        for (group, column), sample in samples.items()
        for name in (GROUPS[group].statistics if group in GROUPS else ('p50', 'p90', 'p99'))
    }
    return Scores(metrics, _rows(episodes, resampling, units_of), resampling.over, resampling.units)


class UnitsOf:
    """Which unit a time of an episode belongs to. block_ns: None where the episode is the unit."""

    def __init__(self, begin_ns: int, block_ns: int | None, number: int, count: int) -> None:
        self._begin_ns, self._block_ns, self._number, self._count = begin_ns, block_ns, number, count

    def __call__(self, times_ns: np.ndarray) -> np.ndarray:
        if self._block_ns is None:
            return np.full(times_ns.shape, self._number, dtype=np.int32)
        number = (times_ns - self._begin_ns) // self._block_ns
        return np.clip(number, 0, self._count - 1).astype(np.int32)


def divide(episodes: Sequence[Episode]) -> tuple[Resampling, list[UnitsOf]]:
    """The units of these episodes: themselves, or blocks of time if there is only one.

    A block is as long as a chunk, because the errors of rows of one chunk belong together, and longer in an
    episode of more than MOST_BLOCKS of those.
    """
    if len(episodes) != 1:
        units = [UnitsOf(e.begin_ns, None, i, len(episodes)) for i, e in enumerate(episodes)]
        return Resampling.of(max(len(episodes), 1), 'episodes'), units
    episode = episodes[0]
    block_s = max(BLOCK_S, episode.actions.shape[1] * episode.step_ns / 1e9)
    count = min(max(1, round(episode.duration_s / block_s)), MOST_BLOCKS)
    block_ns = max(1, -(-(episode.end_ns - episode.begin_ns + 1) // count))
    over = f'blocks of {block_ns / 1e9:.2f} s of one episode'
    return Resampling.of(count, over), [UnitsOf(episode.begin_ns, block_ns, 0, count)]


def collect(
    episodes: Sequence[Episode], units_of: Sequence[UnitsOf], further: Sequence[Values] = ()
) -> dict[tuple[str, str], Sample]:
    """(group, column) -> the values of all episodes with their units."""
    parts: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for i, (episode, units) in enumerate(zip(episodes, units_of, strict=True)):
        found = values_of(episode) | (further[i] if further else {})
        # Joints of one group share their times, and may share what comes of them.
        unit_of = {id(times_ns): units(times_ns) for _, times_ns in found.values()}
        for key, (values, times_ns) in found.items():
            parts.setdefault(key, []).append((values, unit_of[id(times_ns)]))
    return {key: pooled(each) for key, each in parts.items()}


def _by_joint(
    found: Values, group: str, values: np.ndarray, times_ns: np.ndarray, joints: tuple[str, ...]
) -> None:
    """values: [..., D] with nan where nothing is known; times_ns: [...]."""
    known = np.isfinite(values).all(axis=-1)
    rows, times = values[known], times_ns[known]
    found[group, 'all'] = (rows.ravel(), np.repeat(times, len(joints)))
    for column, joint in enumerate(joints):
        found[group, joint] = (rows[:, column], times)


def _rows(
    episodes: Sequence[Episode], resampling: Resampling, units_of: Sequence[UnitsOf]
) -> dict[str, np.ndarray]:
    shapes = {episode.actions.shape[1:] for episode in episodes if episode.chunks}
    if len(shapes) != 1:
        return {}
    horizon, width = shapes.pop()
    sums = np.zeros((resampling.units, horizon, width))
    squares, counts = np.zeros_like(sums), np.zeros((resampling.units, horizon))
    for episode, units in zip(episodes, units_of, strict=True):
        if not episode.chunks:
            continue
        errors, unit = actions.action_errors(episode), units(episode.looked_ns)
        known = np.isfinite(errors).all(axis=-1)
        errors = np.where(known[..., None], errors, 0.0)
        np.add.at(sums, unit, np.abs(errors))
        np.add.at(squares, unit, np.square(errors))
        np.add.at(counts, unit, known)
    total = counts.sum(axis=0)
    drawn = (resampling.draws @ counts) * width
    by_row = np.divide(
        resampling.draws @ sums.sum(axis=2), drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0
    )
    with np.errstate(invalid='ignore', divide='ignore'):
        mae, rmse = sums.sum(axis=0) / total[:, None], np.sqrt(squares.sum(axis=0) / total[:, None])
    low, high = (
        np.nanquantile(by_row, (0.025, 0.975), axis=0) if total.all() else np.full((2, horizon), np.nan)
    )
    return {'mae': mae, 'rmse': rmse, 'low': low, 'high': high, 'count': total}
