"""Static activation scales of the fp8 mode: measured on observations, stored beside the checkpoint.

A scale maps the largest magnitude seen at a product's input to the largest E4M3 value; those of other formats
follow from it (`formats.scale_ratio`). It is measured in bf16
with the engine's own plain kernels. E4M3 keeps its precision over many octaves, so a scale that is somewhat
too large costs little, and one that is too small saturates: hence the headroom.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashrt_ros.engine.calibration.ranges import Ranges, Scales
from flashrt_ros.engine.engine import Engine
from flashrt_ros.engine.weights.formats import E4M3, HEADROOM
from flashrt_ros.errors import BackendError, CheckpointError

FILE = 'flashrt_calibration.json'

VERSION = 1
"""Raise it when scales come to mean something else. Files from before it was written are of version 1."""

Prepared = tuple[Tensor, Tensor, Tensor, Tensor]
"""Images, tokens, state and noise, as `Engine.write` takes them."""


def calibrate(engine: Engine, observations: Iterable[Prepared]) -> Scales:
    """Product name -> scale of its input, from the largest magnitudes."""
    return observe(engine, observations).scales()


def observe(engine: Engine, observations: Iterable[Prepared]) -> Ranges:
    """Ranges of what enters every product. `engine` runs in bf16; it need not have captured anything."""
    ranges = Ranges()
    for product in engine.products():
        product.observer = ranges
    for images, tokens, state, noise in observations:
        engine.write(images, tokens, state, noise)
        with torch.cuda.stream(engine.stream):
            for _, work in engine.stages(images.shape[0], engine.prompt_rows(tokens.shape[0])):
                work()
        engine.read()
    for product in engine.products():
        product.observer = None
    return ranges


def store(
    directory: Path,
    key: str,
    scales: Mapping[str, float],
    observations: int,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the scales beside the checkpoint whose fingerprint is `key`. about: how they were found."""
    path = directory / FILE
    content = {
        'version': VERSION,
        'checkpoint': key,
        'observations': observations,
        'headroom': HEADROOM[E4M3],
        'scales': scales,
        'crests': scales.crests if isinstance(scales, Scales) else {},
        **(about or {}),
    }
    try:
        path.write_text(json.dumps(content, indent=1) + '\n')
    except OSError as error:
        raise BackendError(
            f'the calibration cannot be written: {error}',
            str(path),
            'make the directory writable, or copy it',
        ) from error
    return path


def stored(directory: Path, key: str) -> Scales:
    """Read them again. Raises CheckpointError when there are none, or they belong to other weights."""
    path = directory / FILE
    fix = f'run: flashrt calibrate BAG --config robot.yaml --checkpoint {directory}'
    if not path.exists():
        raise CheckpointError("precision 'fp8' needs activation scales, and there are none", str(path), fix)
    try:
        content = json.loads(path.read_text())
        belongs, scales = content['checkpoint'], {str(k): float(v) for k, v in content['scales'].items()}
        version = content.get('version', 1)
        crests = {str(k): float(v) for k, v in content.get('crests', {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'the calibration cannot be read: {error!r}', str(path), fix) from error
    if version != VERSION:
        raise CheckpointError(f'the calibration has version {version}, not {VERSION}', str(path), fix)
    if belongs != key:
        raise CheckpointError('the calibration belongs to other weights', str(path), fix)
    if not all(0 < scale < float('inf') for scale in scales.values()):
        raise CheckpointError('a scale is not positive and finite', str(path), fix)
    return Scales(scales, crests)
