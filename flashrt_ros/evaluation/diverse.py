"""Few observations that stand for whole bags: spread as far apart as they can be (farthest-point sampling,
Gonzalez 1985), and others, far from those in time, to test on.

The bags are read twice, so that only pictures of chosen moments are ever kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.evaluation.replay.feed import Feed, find_sources
from flashrt_ros.evaluation.replay.watch import Latency, Looked, Watch
from flashrt_ros.ingest import Taken
from flashrt_ros.pictures import picture_array
from flashrt_ros.policy import Observation

THUMBNAIL = 8
"""Pixels of a view's side in the description of a moment."""

APART_S = 0.5
"""Least time between a moment to calibrate on and one to test on, if they are of one bag."""


@dataclass(frozen=True)
class Moment:
    """bag: its number. time_ns: of the tick. feature: float32 [F], what the robot saw and felt."""

    bag: int
    time_ns: int
    feature: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """calibration, held_out: observations. moments: how many there were to choose from."""

    calibration: list[Observation]
    held_out: list[Observation]
    moments: int


def choose_observations(
    bags: Sequence[Path], config: RobotConfig, renamed: Mapping[str, str], count: int, held_out: int
) -> Chosen:
    """Raises ConfigError if the bags have fewer moments than are asked for, BagError for a bag."""
    moments = [moment for number, bag in enumerate(bags) for moment in _moments(bag, number, config, renamed)]
    features = _balanced(np.array([moment.feature for moment in moments]), config)
    chosen = farthest(features, min(count, len(moments)))
    left = [i for i in range(len(moments)) if all(_apart(moments[i], moments[j]) for j in chosen)]
    # Evenly over the bags: test on what is usual, calibrate on what is not.
    tested = [left[i] for i in np.linspace(0, len(left) - 1, min(held_out, len(left))).round().astype(int)]
    if len(chosen) < count or len(tested) < held_out:
        raise ConfigError(
            f'{len(moments)} moments give {len(chosen)} observations to calibrate on and {len(tested)} '
            'to test on',
            'bags',
            f'give more or longer bags, or ask for fewer than {count} and {held_out}',
        )
    wanted = {(moments[i].bag, moments[i].time_ns) for i in (*chosen, *tested)}
    found = {
        (number, looked.time_ns): looked.outcome.observation
        for number, bag in enumerate(bags)
        for looked in _looks(bag, config, renamed)
        if (number, looked.time_ns) in wanted and isinstance(looked.outcome, Taken)
    }
    pick = [[found[moments[i].bag, moments[i].time_ns] for i in group] for group in (chosen, tested)]
    return Chosen(pick[0], pick[1], len(moments))


def farthest(features: np.ndarray, count: int) -> list[int]:
    """Numbers of `count` rows of float32 [n, F]: first the one nearest the middle, then always the one that
    is furthest from all chosen so far. The same for the same rows."""
    if not len(features) or count <= 0:
        return []
    middle = np.linalg.norm(features - features.mean(axis=0), axis=1)
    chosen = [int(middle.argmin())]
    distance = np.linalg.norm(features - features[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return chosen


def _apart(one: Moment, other: Moment) -> bool:
    return one.bag != other.bag or abs(one.time_ns - other.time_ns) >= APART_S * 1e9


def _looks(bag: Path, config: RobotConfig, renamed: Mapping[str, str]) -> Iterator[Looked]:
    with open_bag(bag, readable_part=True) as opened:
        feed = Feed(opened, find_sources(opened, config, renamed))
        for event in Watch(feed, config, Latency(0.0)):
            if isinstance(event, Looked):
                yield event


def _moments(bag: Path, number: int, config: RobotConfig, renamed: Mapping[str, str]) -> Iterator[Moment]:
    for looked in _looks(bag, config, renamed):
        if isinstance(looked.outcome, Taken):
            yield Moment(number, looked.time_ns, _feature(looked.outcome.observation))


def _feature(observation: Observation) -> np.ndarray:
    """Small grey pictures of every view, then the state."""
    small = [
        np.asarray(
            Image.fromarray(picture_array(image, view)).convert('L').resize((THUMBNAIL, THUMBNAIL)),
            dtype=np.float32,
        ).ravel()
        for view, image in observation.images.items()
    ]
    return np.concatenate([*small, observation.state.astype(np.float32)])


def _balanced(features: np.ndarray, config: RobotConfig) -> np.ndarray:
    """Every view and the state count the same, whatever their width and units."""
    if not len(features):
        return features
    pixels = THUMBNAIL**2
    edges = [i * pixels for i in range(len(config.cameras) + 1)]
    parts = [features[:, begin:end] for begin, end in zip(edges, [*edges[1:], None], strict=True)]
    centred = [part - part.mean(axis=0) for part in parts]
    # The state's columns have units of their own, pixels have one.
    centred[-1] = centred[-1] / np.maximum(centred[-1].std(axis=0), 1e-6)
    spreads = [max(float(np.sqrt(np.square(part).sum(axis=1).mean())), 1e-6) for part in centred]
    return np.concatenate([part / spread for part, spread in zip(centred, spreads, strict=True)], axis=1)
