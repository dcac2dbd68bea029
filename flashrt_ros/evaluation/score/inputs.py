"""The bag itself: how often its inputs came, how regularly, how late, and how far apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flashrt_ros.evaluation.metrics import Summary
from flashrt_ros.evaluation.replay.episode import Episode

GAP = 2.5
"""A distance between stamps above so many usual ones is a gap."""


@dataclass(frozen=True)
class InputFigures:
    """rate_hz: of stamps. gaps: distances over GAP periods, longest_gap_s: the longest. back: stamps that go
    back.

    transport: stamp to reception [s]. jitter: distance of stamps minus the usual one [s]. age: when an
    inference began [s].
    """

    messages: int
    rate_hz: float | None
    gaps: int
    longest_gap_s: float | None
    back: int
    transport: Summary
    jitter: Summary
    age: Summary


def input_figures(episode: Episode) -> dict[str, InputFigures]:
    """Input name -> figures."""
    return {name: _of(episode, name) for name in episode.inputs}


def as_json(figures: dict[str, InputFigures]) -> dict[str, Any]:
    return {name: asdict(one) for name, one in figures.items()}


def _of(episode: Episode, name: str) -> InputFigures:
    stamps, received = episode.stamps_ns[name], episode.received_ns[name]
    steps = np.diff(stamps) / 1e9
    usual = float(np.median(steps)) if steps.size else 0.0
    ages = episode.ages[:, episode.inputs.index(name)]
    span = (int(stamps.max()) - int(stamps.min())) / 1e9 if stamps.size else 0.0
    return InputFigures(
        messages=int(stamps.size),
        rate_hz=(stamps.size - 1) / span if span > 0 else None,
        gaps=int((steps > GAP * usual).sum()) if usual > 0 else 0,
        longest_gap_s=float(steps.max()) if steps.size else None,
        back=int((steps < 0).sum()),
        transport=Summary.of((received - stamps) / 1e9),
        jitter=Summary.of(np.abs(steps - usual)),
        age=Summary.of(ages),
    )
