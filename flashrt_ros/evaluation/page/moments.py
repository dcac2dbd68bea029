"""The moments at which the policy was furthest from the recording, with what the cameras saw."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.errors import FlashRTError
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.evaluation.batch.summary import VariantResults
from flashrt_ros.evaluation.replay.episode import Episode
from flashrt_ros.evaluation.score.actions import action_errors
from flashrt_ros.ingest.compressed import decode_compressed
from flashrt_ros.ingest.typed import compressed_frame, image_frame
from flashrt_ros.pictures import Framing, decode_image

COUNT = 6
APART_S = 1.0
"""Moments closer together than this are one."""

WIDTH, QUALITY = 240, 80


@dataclass
class Moment:
    """chunk: its number in the episode. error: mean over its rows and joints, rad or m. joint: column of the
    worst.

    pictures: view -> JPEG.
    """

    episode: Episode
    chunk: int
    error: float
    joint: int
    joint_error: float
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return float(self.episode.looked_ns[self.chunk] - self.episode.begin_ns) / 1e9


def worst_moments(results: VariantResults, folder: Path) -> list[Moment]:
    """The worst first. folder: of the variant's results, where the bags with the pictures are."""
    found: list[Moment] = []
    for episode in results.episodes:
        errors = np.abs(action_errors(episode))
        known = np.isfinite(errors).all(axis=-1)
        for chunk in np.flatnonzero(known.any(axis=1)):
            by_joint = errors[chunk][known[chunk]].mean(axis=0)
            worst = int(by_joint.argmax())
            found.append(Moment(episode, int(chunk), float(by_joint.mean()), worst, float(by_joint[worst])))
    found.sort(key=lambda moment: -moment.error)
    chosen: list[Moment] = []
    for moment in found:
        if all(m.episode is not moment.episode or abs(m.seconds - moment.seconds) >= APART_S for m in chosen):
            chosen.append(moment)
        if len(chosen) == COUNT:
            break
    for episode in results.episodes:
        own = [moment for moment in chosen if moment.episode is episode]
        if own:
            _add_pictures(own, folder / episode.name / 'results', results.config)
    return chosen


def _add_pictures(moments: Sequence[Moment], path: Path, config: RobotConfig) -> None:
    """What each view showed at these moments; nothing where the results bag keeps no pictures."""
    try:
        with open_bag(path, readable_part=True) as bag:
            views = {topic: view for view, topic in _topics(config, set(bag.topics)).items()}
            for moment in moments:
                at = int(moment.episode.looked_ns[moment.chunk])
                for record in bag.records(list(views), at - 2 * 10**9, at + 1):
                    # The last one before the inference stays.
                    message = bag.decode(record)
                    view = views[record.topic]
                    moment.pictures[view] = _thumbnail(message, view, config.cameras[view].framing)
                moment.pictures = {
                    view: moment.pictures[view] for view in config.cameras if view in moment.pictures
                }
    except FlashRTError:
        return


def _topics(config: RobotConfig, there: set[str]) -> dict[str, str]:
    topics = {view: '/' + camera.topic.lstrip('/') for view, camera in config.cameras.items()}
    return {view: topic for view, topic in topics.items() if topic in there}


def _thumbnail(message: object, view: str, framing: Framing) -> bytes:
    if hasattr(message, 'encoding'):
        pixels = decode_image(image_frame(message), view)
    else:
        pixels = decode_compressed(compressed_frame(message), view)
    picture = Image.fromarray(framing.apply(pixels, view))
    picture.thumbnail((WIDTH, WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=QUALITY)
    return buffer.getvalue()
