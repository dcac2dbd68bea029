"""What a checkpoint expects, what a bag has, and whether they fit a robot's configuration.

Everything is plain data, so that it can be shown as text and written as JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flashrt_ros.configuration import RobotConfig, check_against
from flashrt_ros.errors import FlashRTError, ObservationError
from flashrt_ros.evaluation.bag import Bag, BagError, open_bag
from flashrt_ros.evaluation.replay.feed import (
    COMPRESSED,
    IMAGE,
    JOINT_STATE,
    TRAJECTORY,
    find_sources,
)
from flashrt_ros.ingest import JointMap
from flashrt_ros.ingest.compressed import decode_compressed
from flashrt_ros.ingest.stream import stamp_ns
from flashrt_ros.ingest.typed import compressed_frame, image_frame
from flashrt_ros.loading import options_of
from flashrt_ros.models.backend import describe
from flashrt_ros.models.checkpoint import Checkpoint, open_checkpoint
from flashrt_ros.models.guidance import guidance_refusals
from flashrt_ros.models.normalize import MeanStd, Normalizer, Range
from flashrt_ros.pictures import decode_image
from flashrt_ros.policy import PolicyOptions

SAMPLE = 50
"""States read from a bag, evenly over its length, to learn the range of its joints."""

OUTSIDE = 2.0
"""A normalised state further out than this was not in the training data: its 1st and 99th percentile are at
-1 and 1, or its standard deviation is 1."""


def inspect_checkpoint(path: Path, options: PolicyOptions | None = None) -> dict[str, Any]:
    """Raises CheckpointError for what is no checkpoint. Weights are not read."""
    checkpoint = open_checkpoint(path, options)
    processing, spec = checkpoint.processing, checkpoint.spec
    info = _info(checkpoint)
    return {
        'checkpoint': str(path),
        'format': checkpoint.format,
        'family': spec.family,
        'parameters': info.parameters,
        'views': list(processing.views),
        'image_size': processing.image_size,
        'resize': processing.resize,
        'state_dim': processing.state_dim or None,
        'action_dim': processing.action_dim or None,
        'padded_dim': processing.padded_dim,
        'horizon': spec.horizon,
        'steps': spec.steps,
        'prompt_form': processing.prompt_form,
        'max_tokens': processing.max_tokens,
        'delta_actions': list(processing.delta),
        'state_statistics': _statistics(processing.state),
        'action_statistics': _statistics(processing.actions),
    }


def inspect_bag(path: Path) -> dict[str, Any]:
    """Raises BagError for what is no bag. A damaged one is described as far as it can be read."""
    with open_bag(path, readable_part=True) as bag:
        return {
            'bag': str(path),
            'fault': bag.fault.what if bag.fault else None,
            'duration_s': bag.duration_s if bag.topics else 0.0,
            'topics': {name: _topic(bag, name) for name in sorted(bag.topics)},
        }


def check_fit(config: RobotConfig, bag_path: Path | None) -> list[str]:
    """What does not fit between configuration, its checkpoint and a bag; empty if all does."""
    misfits: list[str] = []
    checkpoint = None
    try:
        checkpoint = open_checkpoint(Path(config.policy.checkpoint), options_of(config))
        check_against(config, _info(checkpoint))
    except FlashRTError as error:
        misfits.append(str(error))
    if bag_path is not None:
        try:
            with open_bag(bag_path, readable_part=True) as bag:
                misfits += _bag_misfits(bag, config, checkpoint)
        except FlashRTError as error:
            misfits.append(str(error))
    return misfits


def _info(checkpoint: Checkpoint) -> Any:
    refusals = guidance_refusals(checkpoint.spec, checkpoint.trained_prefix)
    return describe(checkpoint, 'cpu', 'fp32', refusals)


def _statistics(normalizer: Normalizer) -> dict[str, Any]:
    """By column: what normalisation takes for the middle and the spread."""
    if isinstance(normalizer, MeanStd):
        return {
            'kind': 'mean and deviation',
            'mean': _list(normalizer.mean),
            'std': _list(normalizer.multiplier),
        }
    if isinstance(normalizer, Range):
        high = normalizer.low + normalizer.distance
        return {'kind': 'range', 'low': _list(normalizer.low), 'high': _list(high)}
    return {'kind': 'none', 'width': normalizer.width}


def _list(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def _topic(bag: Bag, name: str) -> dict[str, Any]:
    topic = bag.topics[name]
    rate = (topic.count - 1) / bag.duration_s if topic.count > 1 and bag.duration_s > 0 else None
    found = {'type': topic.type, 'messages': topic.count, 'rate_hz': rate}
    try:
        _, message = next(iter(bag.messages(name)))
    except StopIteration:
        return found
    except BagError as error:
        return found | {'fault': error.what}
    return found | _content(message, topic.type)


def _content(message: Any, kind: str) -> dict[str, Any]:
    """What the first message says about all of them."""
    try:
        if kind == IMAGE:
            height, width, _ = decode_image(image_frame(message), 'image').shape
            return {'size': [width, height], 'encoding': message.encoding}
        if kind == COMPRESSED:
            height, width, _ = decode_compressed(compressed_frame(message), 'image').shape
            return {'size': [width, height], 'encoding': message.format}
    except ObservationError as error:
        return {'fault': error.what}
    if kind == JOINT_STATE:
        return {'joints': list(message.name)}
    if kind == TRAJECTORY:
        return {'joints': list(message.joint_names)}
    return {}


def _bag_misfits(bag: Bag, config: RobotConfig, checkpoint: Checkpoint | None) -> list[str]:
    try:
        sources = find_sources(bag, config)
    except FlashRTError as error:
        return [str(error)]
    misfits = []
    joints, states = JointMap.of(config), []
    topic = sources.inputs['state']
    step = max(1, bag.topics[topic].count // SAMPLE)
    for i, (_, message) in enumerate(bag.messages(topic)):
        if i % step:
            continue
        try:
            states.append(joints.positions(message))
        except ObservationError as error:
            misfits.append(f'{topic}: {error.what}')
            break
        if stamp_ns(message.header.stamp) == 0:
            misfits.append(f'{topic}: its header.stamp is 0')
            break
    if checkpoint is not None and states:
        misfits += _unknown_states(np.array(states), joints, checkpoint)
    return misfits


def _unknown_states(states: np.ndarray, joints: JointMap, checkpoint: Checkpoint) -> list[str]:
    """Joints whose values are far from those of the training data: mostly wrong units or another order."""
    normalizer = checkpoint.processing.state
    if normalizer.width < states.shape[1]:
        return []
    normalized = normalizer.narrow(states.shape[1]).normalize(joints.to_checkpoint(states))
    far = np.median(np.abs(normalized), axis=0)
    return [
        f"the joint '{name}' is at {value:.1f} where the training data were between -1 and 1: check its "
        'scale, offset and place among robot.joints'
        for name, value in zip(joints.names, far, strict=True)
        if value > OUTSIDE
    ]
