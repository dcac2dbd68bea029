"""From robot units to the range the network was trained in, and back.

Two formulas, each in the conventions of openpi and of lerobot, which differ in where an epsilon stands:

    mean and deviation   y = (x - mean) / (std + eps)          x = y * std' + mean
    range                y = 2 * (x - low) / width - 1         x = (y + 1) / 2 * width + low

openpi computes in fp64 (its statistics are JSON numbers) with eps = 1e-6, also in the inverse and in every
width. lerobot computes in fp32 with eps = 1e-8, adds it to the deviation on the way in only, and uses it as
the width only where low = high. Nothing is clipped. The arrays may be longer than the robot; `narrow` cuts
them to its width.

Source: openpi `transforms.py` (Normalize, Unnormalize) at 15a9616; lerobot 0.6.1
`processor/normalize_processor.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

OPENPI_EPSILON = 1e-6


class Normalizer(Protocol):
    """Works on the last axis; keeps float64 or float32, whichever its statistics have."""

    @property
    def width(self) -> int:
        """Dimensions that there are statistics for."""
        ...

    def normalize(self, x: np.ndarray) -> np.ndarray: ...

    def restore(self, y: np.ndarray) -> np.ndarray:
        """The inverse of `normalize`."""
        ...

    def narrow(self, width: int) -> Normalizer: ...


@dataclass(frozen=True)
class MeanStd:
    """mean, divisor (way in) and multiplier (way back): [D] each, one dtype."""

    mean: np.ndarray
    divisor: np.ndarray
    multiplier: np.ndarray

    @classmethod
    def openpi(cls, mean: np.ndarray, std: np.ndarray) -> MeanStd:
        padded = std.astype(np.float64) + OPENPI_EPSILON
        return cls(mean.astype(np.float64), padded, padded)

    @classmethod
    def lerobot(cls, mean: np.ndarray, std: np.ndarray, epsilon: float) -> MeanStd:
        std = std.astype(np.float32)
        return cls(mean.astype(np.float32), std + np.float32(epsilon), std)

    @property
    def width(self) -> int:
        return len(self.mean)

    def normalize(self, x: np.ndarray) -> np.ndarray:
        return (x.astype(self.mean.dtype) - self.mean) / self.divisor

    def restore(self, y: np.ndarray) -> np.ndarray:
        return y.astype(self.mean.dtype) * self.multiplier + self.mean

    def narrow(self, width: int) -> MeanStd:
        return MeanStd(self.mean[:width], self.divisor[:width], self.multiplier[:width])


@dataclass(frozen=True)
class Range:
    """low and the distance to high, [D] each, one dtype; low and high are quantiles or extremes."""

    low: np.ndarray
    distance: np.ndarray

    @classmethod
    def openpi(cls, low: np.ndarray, high: np.ndarray) -> Range:
        low = low.astype(np.float64)
        return cls(low, high.astype(np.float64) - low + OPENPI_EPSILON)

    @classmethod
    def lerobot(cls, low: np.ndarray, high: np.ndarray, epsilon: float) -> Range:
        low = low.astype(np.float32)
        distance = high.astype(np.float32) - low
        return cls(low, np.where(distance == 0, np.float32(epsilon), distance))

    @property
    def width(self) -> int:
        return len(self.low)

    def normalize(self, x: np.ndarray) -> np.ndarray:
        return 2 * (x.astype(self.low.dtype) - self.low) / self.distance - 1

    def restore(self, y: np.ndarray) -> np.ndarray:
        return (y.astype(self.low.dtype) + 1) * self.distance / 2 + self.low

    def narrow(self, width: int) -> Range:
        return Range(self.low[:width], self.distance[:width])


@dataclass(frozen=True)
class Identity:
    """For checkpoints that say that nothing is normalised."""

    width: int

    def normalize(self, x: np.ndarray) -> np.ndarray:
        return x

    def restore(self, y: np.ndarray) -> np.ndarray:
        return y

    def narrow(self, width: int) -> Identity:
        return Identity(width)
