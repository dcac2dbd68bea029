"""How a line of pixels becomes one of another length: for each new pixel the old ones that it is made of.

`pil` is Pillow's antialiased bilinear filter for 8 bits a channel, in its own integers (`Resample.c`,
precompute_coeffs and normalize_coeffs_8bpc): a triangle as wide as the picture shrinks, weights in
units of 2^-22. `torch` is `interpolate` (bilinear, align_corners False) without antialiasing, in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashrt_ros.errors import ObservationError

BITS = 22
"""Of a weight in the `pil` convention; Pillow leaves 8 for the pixel and 2 for overshoot."""


@dataclass(frozen=True)
class Taps:
    """For each of N new pixels: old ones from `first` on, `count` of them, their weights.

    first, count: int32 [N]. weights: int32 (pil) or float32 (torch) [N, most taps], 0 behind `count`.
    """

    first: np.ndarray
    count: np.ndarray
    weights: np.ndarray


def fitted_size(width: int, height: int, size: int, where: str = 'image') -> tuple[int, int]:
    """Width and height of a picture inside a square; both conventions truncate.

    Raises ObservationError for one so narrow that nothing of it would be left.
    """
    ratio = max(width / size, height / size)
    fitted = int(width / ratio), int(height / ratio)
    if 0 in fitted:
        raise ObservationError(
            f'an image of {height} x {width} is too narrow for a square of {size}', where, 'crop it first'
        )
    return fitted


def taps(length: int, fitted: int, convention: str) -> Taps:
    """length: old pixels. fitted: new ones. convention: 'pil' or 'torch'."""
    return _antialiased(length, fitted) if convention == 'pil' else _between_two(length, fitted)


def _antialiased(length: int, fitted: int) -> Taps:
    scale = length / fitted
    support = max(scale, 1.0)
    centre = (np.arange(fitted) + 0.5) * scale
    # Truncated as a C cast does; both are positive where it matters.
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), length)
    count = last - first
    k = np.arange(count.max())
    distance = np.abs((k + first[:, None] - centre[:, None] + 0.5) * (1.0 / support))
    weights = np.where(k < count[:, None], np.maximum(1.0 - distance, 0.0), 0.0)
    total = np.zeros(fitted)
    for column in weights.T:  # in Pillow's order, so that the sums are the same to the last bit
        total += column
    weights /= total[:, None]
    whole = (0.5 + weights * (1 << BITS)).astype(np.int32)
    return Taps(first.astype(np.int32), count.astype(np.int32), whole)


def _between_two(length: int, fitted: int) -> Taps:
    scale = np.float32(length) / np.float32(fitted)
    place = np.maximum((np.arange(fitted, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    first = place.astype(np.int32)
    share = (place - first).astype(np.float32)
    share[first >= length - 1] = 0
    count = np.minimum(length - first, 2).astype(np.int32)
    return Taps(first, count, np.stack([1 - share, share], axis=1))
