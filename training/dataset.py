"""Moments of demonstrations on disk: what the robot saw and felt, and what the expert would have done next.

A data set is a folder of shards, `NAME.npz` each, which can be made by several machines and put together.
Pictures are WebP, so that a set of 30 thousand moments travels in 40 MB.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

VIEWS = ('front', 'wrist')
HORIZON = 24
SIZE = 112
"""Pixels of the policy's square pictures."""

HEIGHT = 84
"""Of it that a picture of 4:3 fills; the rest is black and not stored."""

QUALITY = 50
CHUNK_UNIT = 1 / 8192
"""rad, of stored chunks."""


@dataclass(frozen=True)
class Moment:
    """pictures: WebP of each of VIEWS. state: [6] rad. chunk: [HORIZON, 6] rad, row 0 is due now.

    seed: of the episode. tick: in it.
    """

    pictures: tuple[bytes, ...]
    state: np.ndarray
    chunk: np.ndarray
    seed: int
    tick: int


@dataclass(frozen=True)
class Moments:
    """N moments. pictures: uint8 [N, views, HEIGHT, SIZE, 3]. state: fp32 [N, 6]. chunk: fp32 [N, H, 6]."""

    pictures: np.ndarray
    state: np.ndarray
    chunk: np.ndarray
    seed: np.ndarray

    def __len__(self) -> int:
        return len(self.state)

    def where(self, chosen: np.ndarray) -> Moments:
        return Moments(*(getattr(self, field.name)[chosen] for field in fields(self)))


def encode(picture: np.ndarray) -> bytes:
    """uint8 [height, width, 3], 4:3, as the camera gives it -> what is stored, shrunk as the policy does."""
    small = Image.fromarray(picture).resize((SIZE, HEIGHT), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    small.save(buffer, 'WEBP', quality=QUALITY, method=6)
    return buffer.getvalue()


def write_shard(path: Path, moments: Sequence[Moment]) -> None:
    """Complete or not at all."""
    pictures = [picture for moment in moments for picture in moment.pictures]
    units = np.round(np.stack([moment.chunk for moment in moments]) / CHUNK_UNIT).astype(np.int16)
    partial = path.with_suffix('.partial')
    with partial.open('wb') as file:
        np.savez_compressed(
            file,
            bytes=np.frombuffer(b''.join(pictures), np.uint8),
            lengths=np.array([len(picture) for picture in pictures], np.uint16),
            state=np.stack([moment.state for moment in moments]).astype(np.float32),
            chunk=np.diff(units, axis=1, prepend=np.int16(0)),
            seed=np.array([moment.seed for moment in moments], np.int64),
            tick=np.array([moment.tick for moment in moments], np.int16),
        )
    partial.replace(path)


def read_shard(path: Path) -> Moments:
    with np.load(path) as file:
        lengths = file['lengths'].astype(np.int64)
        packed = file['bytes'].tobytes()
        chunk = np.cumsum(file['chunk'], axis=1, dtype=np.int16) * np.float32(CHUNK_UNIT)
        state, seed = file['state'], file['seed']
    ends = np.cumsum(lengths)
    decoded = [
        np.asarray(Image.open(io.BytesIO(packed[end - length : end])).convert('RGB'))
        for end, length in zip(ends, lengths, strict=True)
    ]
    pictures = np.stack(decoded).reshape(len(state), len(VIEWS), HEIGHT, SIZE, 3)
    return Moments(pictures, state, chunk.astype(np.float32), seed)
