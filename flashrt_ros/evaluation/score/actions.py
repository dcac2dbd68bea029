"""Predicted actions against the recorded commands, row by row, and against the chunk before them."""

from __future__ import annotations

import numpy as np

from flashrt_ros.evaluation.replay.episode import Episode

MAX_GAP_S = 0.5
"""Between two recorded commands further apart nothing is known of what was commanded."""


def series_at(
    times_ns: np.ndarray, values: np.ndarray, at_ns: np.ndarray, max_gap_s: float = MAX_GAP_S
) -> np.ndarray:
    """float64 [..., D]: a series [n], [n, D] on the line between its neighbours, at times of any shape.

    nan before the first, after the last, and inside a gap longer than max_gap_s.
    """
    shape = (*at_ns.shape, values.shape[1])
    if len(times_ns) < 2:
        return np.full(shape, np.nan)
    order = np.argsort(times_ns, kind='stable')
    times_ns, values = times_ns[order], values[order]
    right = np.clip(np.searchsorted(times_ns, at_ns, side='left'), 1, len(times_ns) - 1)
    left = right - 1
    span = (times_ns[right] - times_ns[left]).astype(np.float64)
    share = np.divide(at_ns - times_ns[left], span, out=np.ones(at_ns.shape), where=span > 0)
    found = values[left] + share[..., None] * (values[right] - values[left])
    outside = (at_ns < times_ns[0]) | (at_ns > times_ns[-1]) | (span > max_gap_s * 1e9)
    found[outside] = np.nan
    return found


def row_times(episode: Episode) -> np.ndarray:
    """int64 [N, H]: when every row of every chunk is due."""
    rows = np.arange(episode.actions.shape[1], dtype=np.int64) * episode.step_ns
    return episode.start_ns[:, None] + rows


def action_errors(episode: Episode) -> np.ndarray:
    """float64 [N, H, D]: prediction minus recorded command when the row is due; nan where none is known."""
    wanted = series_at(episode.reference_ns, episode.reference, row_times(episode))
    return episode.actions - wanted


def disagreement(episode: Episode) -> np.ndarray:
    """float64 [N - 1, H, D]: every chunk minus the one before it, where both have a row; else nan."""
    actions = episode.actions
    if len(actions) < 2:
        return np.zeros((0, *actions.shape[1:]))
    offset = (episode.start_ns[1:] - episode.start_ns[:-1]) / episode.step_ns
    place = offset[:, None] + np.arange(actions.shape[1])
    last = actions.shape[1] - 1
    inside = (place >= 0) & (place <= last)
    left = np.clip(np.floor(place), 0, max(last - 1, 0)).astype(np.int64)
    share = np.clip(place - left, 0, 1)[..., None]
    number = np.arange(len(place))[:, None]
    before = actions[:-1]
    right = np.minimum(left + 1, last)
    old = before[number, left] + share * (before[number, right] - before[number, left])
    return np.where(inside[..., None], actions[1:] - old, np.nan)


def command_errors(episode: Episode) -> np.ndarray:
    """float64 [M, D]: what was sent minus the recorded command at the same time; nan where none is known."""
    wanted = series_at(episode.reference_ns, episode.reference, episode.commands_ns)
    return episode.commands - wanted
