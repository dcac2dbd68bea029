"""The fused denoise loop of `expert.loop` behind the same face as `towers.denoise.PlainDenoise`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.buffers import ROWS
from flashrt_ros.engine.expert.launches import LAYERS_BLOCKS
from flashrt_ros.engine.expert.loop import ExpertLoop, ExpertShape, Prefix
from flashrt_ros.engine.expert.weights import PRODUCTS, ExpertWeights, Heads, Modulation, Product, pack_expert
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.towers.flow import FlowHeads, flow_table
from flashrt_ros.models.spec import GEMMA_300M, PolicySpec

PREFIX = 'fused_expert.'
"""Of the names of its packed tensors."""

OBSERVED = {'qkv': 'unnormed_qkv', 'output': 'o', 'gate_up': 'unnormed_gate_up', 'down': 'down'}
"""Its products -> calibration's name of the range in front of them (1 / rms is applied behind)."""


def covers(gpu: Gpu, spec: PolicySpec) -> bool:
    """Whether the loop has kernels for this GPU and these sizes."""
    published = replace(spec.expert, layers=GEMMA_300M.layers) == GEMMA_300M and spec.action_dim == 32
    fits = gpu.capability == (9, 0) and gpu.multiprocessors >= LAYERS_BLOCKS
    return fits and published and spec.horizon + spec.has_state_token <= ROWS


def pack_fused(tensors: Mapping[str, Tensor], spec: PolicySpec, precision: str) -> dict[str, Tensor]:
    """The action expert as flat tensors named `fused_expert.*`."""
    weights = pack_expert(spec, tensors, flow_table(tensors, spec), precision)
    packed = {}
    for name, product in weights.products.items():
        packed.update(_flat(f'products.{name}.', product))
    packed.update(_flat('modulation.', weights.modulation))
    packed.update(_flat('heads.', replace(weights.heads, mixer=None)))
    if weights.heads.mixer is not None:
        packed.update(_flat('mixer.', weights.heads.mixer))
    return packed


def packed_format(packed: Mapping[str, Tensor], spec: PolicySpec) -> str:
    """What `pack_fused` was given as precision: bf16 takes two bytes a value, and in one pi0 has integers."""
    weights, scale = (packed[f'{PREFIX}products.qkv.{name}'] for name in ('weights', 'scale'))
    if weights[0].numel() > scale[0].numel() * spec.expert.width:
        return 'bf16'
    return 'int8' if spec.family == 'pi0' else 'fp8'


class FusedDenoise:
    """actions fp32 [H, A]: noise before `run`, actions after. state fp32 [A], read by pi0. guide: what `run`
    is guided by."""

    def __init__(
        self,
        library: KernelLibrary,
        spec: PolicySpec,
        packed: Mapping[str, Tensor],
        scales: Mapping[str, float],
        cache: PrefixCache,
        prefix_rows: int,
    ) -> None:
        device = library.gpu.device
        weights, activation_scales = restore(packed, spec, scales, device)
        self.guide = GuideInputs(spec, device)
        self._loop = ExpertLoop(
            library,
            weights,
            activation_scales,
            ExpertShape(spec.horizon, prefix_rows),
            Prefix(cache.keys, cache.values, cache.length),
            self.guide,
        )
        self.actions, self.state = self._loop.actions, torch.zeros(spec.action_dim, device=device)
        self._heads = FlowHeads(packed, spec, device)

    def run(self) -> None:
        """Launch all flow steps on the current stream."""
        if self._loop.state_token is not None:
            self._loop.state_token.copy_(self._heads.state_token(self.state))
        self._loop.launch()


def restore(
    packed: Mapping[str, Tensor], spec: PolicySpec, scales: Mapping[str, float], device: torch.device
) -> tuple[ExpertWeights, Tensor | None]:
    """Weights that `pack_fused` packed, and scales of activations if those are in 8 bits."""
    precision = packed_format(packed, spec)
    activations = _activation_scales(scales, spec.expert.layers) if precision != 'bf16' else None
    return _restore(packed, spec.steps, precision, device), activations


def _activation_scales(scales: Mapping[str, float], layers: int) -> Tensor:
    return torch.tensor(
        [[scales[f'expert.{i}.{OBSERVED[name]}'] for name in PRODUCTS] for i in range(layers)]
    )


def _flat(name: str, record: object) -> dict[str, Tensor]:
    """The tensors of a dataclass, without those that are None."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}  # type: ignore[arg-type]
    return {f'{PREFIX}{name}{key}': value.contiguous() for key, value in values.items() if value is not None}


def _restore(packed: Mapping[str, Tensor], steps: int, precision: str, device: torch.device) -> ExpertWeights:
    def part(name: str) -> dict[str, Tensor]:
        start = PREFIX + name
        return {key[len(start) :]: value.to(device) for key, value in packed.items() if key.startswith(start)}

    mixer, heads = part('mixer.'), part('heads.')
    mixer_bias = heads.pop('mixer_bias', None)
    products = {name: Product(**part(f'products.{name}.')) for name in PRODUCTS}
    ends = Heads(**heads, mixer=Product(**mixer) if mixer else None, mixer_bias=mixer_bias)
    return ExpertWeights(precision, steps, products, Modulation(**part('modulation.')), ends)
