"""What rounding operands to 8 bits costs pi0, on the CPU: the plain model at a quarter of its widths.

usage: python -m benchmarks.number_formats [--observations 4] [--family pi0] [--each]

Rounding errors depend on how values are distributed, hardly on widths, and grow with depth, which is the
real policy's: at full size the engine's actions come out better than here, by up to two fifths
(benchmarks/notes.md).
Inputs of products are rounded with static scales from other observations, weights with a scale for each
channel; all arithmetic is fp32. pi0's expert rounds its inputs before the norm's 1 / rms, as its kernels do.
Prints the relative error of features, of keys and values, and of what the flow steps add, and the cosine of
that; --each: for one product of one tower at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.policies import SPECS
from flashrt_ros.engine.weights.formats import (
    BF16,
    E4M3,
    HEADROOM,
    INT8,
    LARGEST,
    TOWERS,
    quantise_rows,
    round_to,
)
from flashrt_ros.models.gemma import EPSILON, RMSNorm
from flashrt_ros.models.linear import Linear
from flashrt_ros.models.pi import PiModel, load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import GemmaSpec, PolicySpec, VisionSpec

PARTS = {
    **dict.fromkeys(('q_proj', 'k_proj', 'v_proj'), 'qkv'),
    **dict.fromkeys(('out_proj', 'o_proj'), 'o'),
    **dict.fromkeys(('fc1', 'gate_proj', 'up_proj'), 'up'),
    **dict.fromkeys(('fc2', 'down_proj'), 'down'),
    'linear': 'projector',
}
"""Last word of a layer's name -> product; 'up' stands for gate and up too."""

Formats = Mapping[str, torch.dtype]
"""'tower.part' or 'tower' -> what its operands are rounded to; what is missing stays as it is."""

SCHEMES: dict[str, Formats] = {
    'bf16': dict.fromkeys(('vision', 'language', 'expert'), BF16),
    'E4M3': dict.fromkeys(('vision', 'language', 'expert'), E4M3),
    'E4M3, expert bf16': {'vision': E4M3, 'language': E4M3, 'expert': BF16},
    'vision E4M3': {'vision': E4M3},
    'language E4M3': {'language': E4M3},
    'expert E4M3': {'expert': E4M3},
    'integers, downs of language and expert E4M3': {
        **dict.fromkeys(('vision', 'language', 'expert'), INT8),
        **dict.fromkeys(('language.down', 'expert.down'), E4M3),
    },
    'the same, expert bf16': {'vision': INT8, 'language': INT8, 'language.down': E4M3, 'expert': BF16},
    'the same, vision bf16': {
        'vision': BF16,
        **dict.fromkeys(('language', 'expert'), INT8),
        **dict.fromkeys(('language.down', 'expert.down'), E4M3),
    },
}


def each() -> dict[str, Formats]:
    """One product of one tower in E4M3 and in integers."""
    products = [f'{tower}.{part}' for tower in TOWERS for part in ('qkv', 'o', 'up', 'down')]
    dtypes = {'E4M3': E4M3, 'integers': INT8}
    return {
        f'{product} {name}': {product: dtype}
        for product in (*products, 'vision.projector')
        for name, dtype in dtypes.items()
    }


class Rounding:
    """The operands of a model's products, watched (formats None) or rounded. largest: of inputs, by name."""

    def __init__(self, model: PiModel) -> None:
        self.formats: Formats | None = {}
        self._largest: dict[str, Tensor] = {}
        self._weights: dict[tuple[str, torch.dtype], Tensor] = {}
        for name, module in model.named_modules():
            product = self._product(name)
            if isinstance(module, Linear) and product:
                module.forward = self._linear(name, product, module, model.spec.has_ada_rms)  # type: ignore[method-assign]
            elif isinstance(module, RMSNorm) and name.startswith('expert.layers'):
                follower = 'expert.qkv' if 'input' in name else 'expert.up'
                module.forward = self._norm(name, follower, module)  # type: ignore[method-assign]

    @staticmethod
    def _product(name: str) -> str | None:
        tower, part = name.split('.')[0].replace('projector', 'vision'), PARTS.get(name.split('.')[-1])
        return f'{tower}.{part}' if part and tower in ('vision', 'language', 'expert') else None

    def _linear(self, name: str, product: str, module: Linear, has_ada_rms: bool):  # type: ignore[no-untyped-def]
        rounded_before = product in ('expert.qkv', 'expert.up') and not has_ada_rms

        def forward(x: Tensor) -> Tensor:
            dtype = self._dtype(product)
            if not rounded_before or dtype is None:
                x = self._input(name, x, dtype)
            weight = module.weight if dtype is None else self._weight(name, module.weight, dtype)
            return F.linear(x, weight, module.bias)

        return forward

    def _norm(self, name: str, follower: str, module: RMSNorm):  # type: ignore[no-untyped-def]
        def forward(x: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, None]:
            scaled = self._input(name, x * (1 + module.weight), self._dtype(follower))
            return scaled * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON), None

        return forward

    def _dtype(self, product: str) -> torch.dtype | None:
        formats = self.formats or {}
        return formats.get(product, formats.get(product.split('.')[0]))

    def _input(self, name: str, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        if self.formats is None:
            largest = x.abs().amax()
            self._largest[name] = torch.maximum(self._largest.get(name, largest), largest)
        if dtype is None or dtype == BF16:
            return x if dtype is None else x.bfloat16().float()
        scale = self._largest[name] * HEADROOM[dtype] / LARGEST[dtype]
        return round_to(x / scale, dtype).float() * scale

    def _weight(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if (name, dtype) not in self._weights:
            values, scale = quantise_rows(weight, dtype)
            self._weights[name, dtype] = values.float() * scale[:, None]
        return self._weights[name, dtype]


def quarter(family: str) -> PolicySpec:
    """The published policy with a quarter of every width, and images of 64 patches."""
    vision = VisionSpec(width=288, heads=4, mlp=1088, image_size=112)
    language, expert = GemmaSpec(18, 512, 4096, head_dim=64), GemmaSpec(18, 256, 1024, head_dim=64)
    return replace(SPECS[family], vision=vision, language=language, expert=expert, vocab=1024)


def observe(spec: PolicySpec, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Images of two views, 50 prompt tokens, state and noise."""
    draw, size = torch.Generator().manual_seed(seed), spec.vision.image_size
    for _ in range(count):
        images = torch.randint(0, 256, (2, 3, size, size), generator=draw) / 127.5 - 1
        tokens = torch.randint(0, spec.vocab, (1, 50), generator=draw)
        state = torch.randn(1, spec.action_dim, generator=draw)
        yield images, tokens, state, torch.randn(1, spec.horizon, spec.action_dim, generator=draw)


def run(model: PiModel, table: Tensor, observed: tuple[Tensor, ...]) -> list[Tensor]:
    """Features, keys and values of the last layer but one, and what the flow steps add."""
    images, tokens, state, noise = observed
    features = model.see(images)
    prefix = model.prefill(features, tokens, state)
    cache = torch.cat([x[:, :, : features.shape[1] + tokens.shape[1]] for x in prefix[-2]])
    return [features, cache, model.denoise(noise, prefix, table) - noise]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--family', default='pi0', choices=SPECS)
    parser.add_argument('--observations', type=int, default=4)
    parser.add_argument('--each', action='store_true', help='one product at a time')
    arguments = parser.parse_args()
    spec = quarter(arguments.family)
    with torch.inference_mode():
        model = load_model(spec, random_tensors(spec), torch.float32)
        table, rounding = model.flow_table(spec.steps), Rounding(model)
        observed = list(observe(spec, arguments.observations, seed=99))
        exact = [run(model, table, one) for one in observed]
        rounding.formats = None
        for one in observe(spec, 4, seed=1234):
            run(model, table, one)
        for name, rounding.formats in (each() if arguments.each else SCHEMES).items():
            report(name, [run(model, table, one) for one in observed], exact)


def report(name: str, found: list[list[Tensor]], exact: list[list[Tensor]]) -> None:
    pairs = [list(zip(f, e, strict=True)) for f, e in zip(found, exact, strict=True)]
    errors = [
        sum(float((f - e).norm() / e.norm()) for f, e in stage) / len(pairs)
        for stage in zip(*pairs, strict=True)
    ]
    cosines = [float(F.cosine_similarity(f.flatten(), e.flatten(), 0)) for (_, _, (f, e)) in pairs]
    figures = ' '.join(f'{error:.4f}' for error in errors)
    print(f'{name:45} {figures}  {sum(cosines) / len(cosines):.5f}, worst {min(cosines):.5f}', flush=True)


if __name__ == '__main__':
    main()
