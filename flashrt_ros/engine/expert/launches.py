"""Launches of the kernel of the action expert's denoise loop, with their arguments.

One launch runs all flow steps; where the actions are updated elsewhere, as exact guidance does, one runs a
flow step. The tensors are static, so launches are made once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flashrt_ros.engine.cuda.launcher import Kernel
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.arguments import LAYER, LayerArguments, Phase, layer_arguments
from flashrt_ros.engine.expert.buffers import WIDTH, ExpertBuffers, Prefix
from flashrt_ros.engine.expert.weights import PRODUCTS, ExpertWeights
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.weights.formats import constants as dtype_constants
from flashrt_ros.engine.weights.formats import product_dtype

LAYERS_BLOCKS, LAYERS_THREADS, LAYERS_SHARED = 128, 384, 206 << 10
"""Of expert_layers.cu: blocks, threads, and dynamic shared memory, as much as a multiprocessor has left."""


@dataclass(frozen=True)
class Launch:
    """Of a kernel whose blocks stay on the GPU, when everything recorded before has finished."""

    kernel: Kernel
    grid: int
    threads: int
    arguments: tuple[Any, ...]
    shared: int

    def __call__(self) -> None:
        self.kernel(
            self.grid, self.threads, *self.arguments, shared=self.shared, cooperative=True, dependent=False
        )


class ExpertLaunches:
    """Builds launches on given buffers.

    stamps: see `ExpertLoop`. kept: where `step` keeps what the way back needs, by the names in
    kernels/expert_arguments.cuh.
    """

    def __init__(
        self,
        library: KernelLibrary,
        weights: ExpertWeights,
        buffers: ExpertBuffers,
        prefix: Prefix,
        guide: GuideInputs,
        stamps: Tensor | None = None,
        kept: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._guide, self._stamps, self._kept = guide, stamps, kept or {}
        self._library, self._weights, self._buffers, self._prefix = library, weights, buffers, prefix
        self._velocity_shift = velocity_shift(weights)
        self._layers = len(weights.products['qkv'].weights)

    def all_steps(self) -> Launch:
        """From the noise in the buffers' actions to the actions."""
        constants = {} if self._stamps is None else {'TIMELINE': self._layers // 2}
        return launch_layers(self._library, self._weights.precision, self._arguments(0), **constants)

    def step(self, step: int) -> Launch:
        """One flow step up to its last layer, for a loop that updates the actions itself."""
        return launch_layers(self._library, self._weights.precision, self._arguments(step), KEEPS=1)

    def _arguments(self, step: int) -> LayerArguments:
        weights, modulation, buffers = self._weights, self._weights.modulation, self._buffers
        products = {f'{name}_weights': weights.products[name].weights for name in PRODUCTS}
        column_scales = {f'{name}_scale': weights.products[name].scale for name in PRODUCTS}
        mixer = weights.heads.mixer
        return layer_arguments(
            **products,
            **column_scales,
            **buffers.exchange,
            mixer_weights=mixer.weights if mixer else None,
            mixer_scale=mixer.scale if mixer else None,
            qkv_bias=modulation.qkv_bias,
            gate_up_bias=modulation.gate_up_bias,
            gate=modulation.gate,
            norm_scale=modulation.scale,
            scales=buffers.scales,
            rotary=buffers.rotary,
            length=self._prefix.length,
            prefix_k=self._prefix.keys,
            prefix_v=self._prefix.values,
            base=buffers.base,
            stamps=self._stamps,
            capacity=self._prefix.keys.shape[1],
            layers=self._layers,
            rows=buffers.rows,
            state_token=int(mixer is not None),
            step=step,
            phases=LAYER | Phase.ACTIONS_IN | (Phase.EMBED if mixer else 0),
            normed_layers=self._layers,
            clean=len(modulation.scale) - 1,
            **self._ends(),
            **{f'kept_{name}': tensor for name, tensor in self._kept.items()},
        )

    def _ends(self) -> dict[str, Tensor | int]:
        heads, guide = self._weights.heads, self._guide
        return {
            'out_weight': heads.out_weight,
            'velocity_shift': self._velocity_shift,
            'in_weight': heads.in_weight,
            'in_bias': heads.in_bias,
            'target': guide.target,
            'pull': guide.weights,
            'gammas': guide.gammas,
            'frozen': guide.frozen,
            'actions': self._buffers.actions,
            'steps': self._weights.steps,
            'bias_stride': WIDTH if len(heads.in_bias) > 1 else 0,
        }


def velocity_shift(weights: ExpertWeights) -> Tensor:
    """What the final norm's shift and the output's bias add to the velocity, fp32 [flow steps, or 1, 32]."""
    heads, shift = weights.heads, weights.modulation.final_shift.double()
    return (shift @ heads.out_weight.double().T + heads.out_bias.double()).float().contiguous()


def launch_layers(
    library: KernelLibrary, precision: str, arguments: LayerArguments, **constants: int
) -> Launch:
    """The launch of expert_layers.cu, compiled with given constants, on given arguments."""
    arguments.shared_bytes = LAYERS_SHARED
    kernel = library.kernel('expert_layers', 'expert_layers', **format_constants(precision), **constants)
    return Launch(kernel, LAYERS_BLOCKS, LAYERS_THREADS, (arguments,), LAYERS_SHARED)


def format_constants(precision: str) -> dict[str, int]:
    """What the kernels of an expert in 'bf16', 'fp8' or 'int8' are compiled with."""
    return dtype_constants(product_dtype('expert.qkv', precision))
