"""Ranges of what enters every product while calibration observations run: largest magnitudes and their
histogram.

A magnitude falls into a bin a quarter of an octave wide, so a percentile is right to within a fifth of its
value; E4M3's own steps are an eighth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.weights.formats import E4M3, HEADROOM, LARGEST

OCTAVE, LOWEST, BINS = 4, -24.0, 4 * 48
"""Bins of an octave, log2 of the first bin's lower edge, and bins in all: 2^-24 to 2^24."""

AMAX, PERCENTILE = 'amax', 'percentile'
METHODS = (AMAX, PERCENTILE)

LEAST = 1e-6
"""Of an input that is always 0."""


class Scales(dict[str, float]):
    """Product name -> scale of its input in E4M3. crests: largest magnitude over rms, where it was seen."""

    def __init__(self, scales: Mapping[str, float], crests: Mapping[str, float] | None = None) -> None:
        super().__init__(scales)
        self.crests = dict(crests or {})


class Ranges:
    """step: flow step that runs now, or None outside the denoise loop. names: products seen so far."""

    def __init__(self) -> None:
        self.step: int | None = None
        self._largest: dict[str, dict[int | None, Tensor]] = {}
        self._bins: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        return list(self._largest)

    def note(self, name: str, x: Tensor) -> None:
        """x: what enters the product, any shape; computed on its own device, without waiting for it."""
        magnitude = x.detach().float().abs().flatten()
        largest = magnitude.amax()
        by_step = self._largest.setdefault(name, {})
        known = by_step.get(self.step)
        by_step[self.step] = largest if known is None else torch.maximum(known, largest)
        place = ((magnitude.log2() - LOWEST) * OCTAVE).floor().clamp(0, BINS - 1)
        # log2(0) is -inf; zeros say nothing about a range, and padding rows are full of them.
        seen = torch.bincount(place[magnitude > 0].long(), minlength=BINS)
        squares = magnitude.double().square().sum()
        known_bins, known_squares = self._bins.get(name), self._squares.get(name)
        self._bins[name] = seen if known_bins is None else known_bins + seen
        self._squares[name] = squares if known_squares is None else known_squares + squares

    def amax(self, name: str) -> float:
        """The largest magnitude of all steps."""
        return max(float(value) for value in self._largest[name].values())

    def amax_by_step(self, name: str) -> list[float]:
        """The largest magnitude in each flow step; empty for products outside the denoise loop."""
        steps = self._largest[name]
        return [float(steps[step]) for step in sorted(step for step in steps if step is not None)]

    def percentile(self, name: str, percent: float) -> float:
        """The upper edge of the bin below which so many percent of the magnitudes lie; at most the
        largest."""
        counts = self._bins[name].double().cpu()
        if not counts.sum():
            return 0.0
        reached = counts.cumsum(0) / counts.sum()
        place = int(torch.searchsorted(reached, torch.tensor(percent / 100, dtype=torch.float64)))
        edge = math.exp2((min(place, BINS - 1) + 1) / OCTAVE + LOWEST)
        return min(edge, self.amax(name))

    def crest(self, name: str) -> float:
        """The largest magnitude over the rms of all that are not zero; 0 if all are."""
        squares, count = float(self._squares[name]), int(self._bins[name].sum())
        return self.amax(name) / math.sqrt(squares / count) if squares > 0 else 0.0

    def scales(self, method: str = AMAX, percent: float = 99.999) -> Scales:
        """Product name -> scale of its input in E4M3. percent: for 'percentile'; what lies above it
        saturates."""
        of = {AMAX: self.amax, PERCENTILE: lambda name: self.percentile(name, percent)}[method]
        scales = {name: max(of(name), LEAST) * HEADROOM[E4M3] / LARGEST[E4M3] for name in self.names}
        return Scales(scales, {name: self.crest(name) for name in self.names})
