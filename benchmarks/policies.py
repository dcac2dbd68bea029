"""Full-size policies with random weights, and random observations for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flashrt_ros.engine.calibration.ranges import Scales
from flashrt_ros.engine.calibration.scales import calibrate
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.engine import Engine
from flashrt_ros.engine.expert.denoise import covers
from flashrt_ros.engine.operators.wide_gemm import covers as covers_prefill
from flashrt_ros.engine.weights.formats import uneven_products
from flashrt_ros.engine.weights.store import pack
from flashrt_ros.models.random import RandomTensors, random_tensors
from flashrt_ros.models.spec import PI0, PI05, PolicySpec

SPECS = {'pi05': PI05, 'pi0': PI0}

Observed = tuple[Tensor, Tensor, Tensor, Tensor]


class PolicyFactory:
    """Engines of one family; weights, packed weights and scales are made once."""

    def __init__(self, library: KernelLibrary, family: str, spec: PolicySpec | None = None) -> None:
        self.library, self.spec = library, spec or replace(SPECS[family], max_tokens=200)
        self.tensors: RandomTensors = random_tensors(self.spec, 0, torch.float32, 'cuda')
        self._packed: dict[tuple[str, bool], dict[str, Tensor]] = {}
        self._scales = Scales({})

    def packed(self, precision: str, views: int) -> dict[str, Tensor]:
        """For the fused denoise loop and the wide products of the prefill where they cover GPU and policy."""
        gpu = self.library.gpu
        fused, wide = covers(gpu, self.spec), covers_prefill(gpu, self.spec, precision, views)
        if (precision, wide) not in self._packed:
            uneven = uneven_products(self.scales().crests) if precision == 'fp8' else frozenset()
            self._packed[precision, wide] = pack(self.tensors, self.spec, precision, fused, wide, uneven)
        return self._packed[precision, wide]

    def scales(self) -> Scales:
        """Calibrated on eight random observations of two views."""
        if not self._scales:
            engine = Engine(self.library, self.spec, pack(self.tensors, self.spec, 'bf16'), 2)
            self._scales = calibrate(engine, observations(self.spec, 2, 50, 8, seed=1234))
        return self._scales

    def engine(self, precision: str, views: int, horizon: int = 50, timed: bool = True) -> Engine:
        """Captured and ready."""
        engine = self.build(precision, views, horizon)
        engine.capture(timed)
        return engine

    def build(self, precision: str, views: int, horizon: int = 50) -> Engine:
        """Not captured yet."""
        scales = self.scales() if precision == 'fp8' else Scales({})
        spec = replace(self.spec, horizon=horizon)
        return Engine(self.library, spec, self.packed(precision, views), views, scales)


def observations(spec: PolicySpec, views: int, tokens: int, count: int, seed: int = 0) -> list[Observed]:
    """Random images, tokens, state and noise on the host, pinned."""
    draw = torch.Generator().manual_seed(seed)
    size = spec.vision.image_size

    def observe() -> Observed:
        pixels = torch.randint(0, 256, (views, 3, size, size), generator=draw)
        images = (pixels.float() / 255 * 2 - 1).pin_memory()
        words = torch.randint(0, spec.vocab, (tokens,), generator=draw).pin_memory()
        state, noise = (
            torch.randn(*shape, generator=draw)
            for shape in ((spec.action_dim,), (spec.horizon, spec.action_dim))
        )
        return images, words, state.pin_memory(), noise.pin_memory()

    return [observe() for _ in range(count)]
