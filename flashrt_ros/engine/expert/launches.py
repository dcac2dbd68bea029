"""Every launch of the action expert's denoise loop, in order, with its arguments.

A flow step is one flow kernel and one kernel for all layers. The tensors are static, so the whole list is
made once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flashrt_ros.engine.cuda.launcher import Kernel
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.arguments import LAYER, SWITCHES, LayerArguments, Phase, layer_arguments
from flashrt_ros.engine.expert.buffers import ACTION_DIM, WIDTH, ExpertBuffers, Prefix
from flashrt_ros.engine.expert.weights import PRODUCTS, ExpertWeights
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.weights.formats import constants as dtype_constants
from flashrt_ros.engine.weights.formats import product_dtype

FLOW_THREADS, FLOW_SHARED = 256, ACTION_DIM * WIDTH * 4
LAYERS_BLOCKS, LAYERS_THREADS, LAYERS_SHARED = 128, 384, 208 << 10
"""Of expert_layers.cu: blocks, threads, and dynamic shared memory, as much as a multiprocessor has."""


@dataclass(frozen=True)
class Launch:
    kernel: Kernel
    grid: int
    threads: int
    arguments: tuple[Any, ...]
    shared: int
    cooperative: bool = False

    def __call__(self, dependent: bool) -> None:
        self.kernel(
            self.grid,
            self.threads,
            *self.arguments,
            shared=self.shared,
            cooperative=self.cooperative,
            dependent=dependent,
        )


class ExpertLaunches:
    """Builds the launches of all flow steps on given buffers. stamps: see `ExpertLoop`. kept: where to keep
    what the way back needs, by the names in kernels/expert_arguments.cuh."""

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
        self._modulation, self._heads = weights.modulation, weights.heads
        self._layers = len(weights.products['qkv'].weights)

    def all(self) -> Iterator[Launch]:
        """Embedding, then for each step its layers, and the update of the actions with the next embedding."""
        if SWITCHES.get('ALL_STEPS'):
            yield self._all_steps()
            return
        yield self._flow(0, update=False)
        for step in range(self._weights.steps):
            yield self._all_layers(step)
            yield self._flow(step + 1 if step + 1 < self._weights.steps else None, update=True)

    def _all_steps(self) -> Launch:
        heads, guide, modulation = self._heads, self._guide, self._modulation
        arguments = self._arguments(0)
        shift = modulation.final_shift.double() @ heads.out_weight.double().T + heads.out_bias.double()
        self.velocity_shift = shift.float().contiguous()
        ends = {
            'out_weight': heads.out_weight,
            'velocity_shift': self.velocity_shift,
            'in_weight': heads.in_weight,
            'in_bias': heads.in_bias,
            'target': guide.target,
            'pull': guide.weights,
            'gammas': guide.gammas,
            'actions': self._buffers.actions,
        }
        for name, tensor in ends.items():
            assert tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 or name == 'gammas', name
            setattr(arguments, name, tensor.data_ptr())
        arguments.steps = self._weights.steps
        arguments.bias_stride = WIDTH if len(heads.in_bias) > 1 else 0
        constants = {} if self._stamps is None else {'TIMELINE': self._layers // 2}
        return launch_layers(self._library, self._weights.precision, arguments, **constants)

    def step(self, step: int) -> tuple[Launch, Launch]:
        """Embedding and layers of one flow step, for a loop that updates the actions itself."""
        return self._flow(step, update=False), self._all_layers(step)

    def _all_layers(self, step: int) -> Launch:
        constants = {} if self._stamps is None else {'TIMELINE': self._layers // 2}
        if self._kept:
            constants['KEEPS'] = 1
        return launch_layers(self._library, self._weights.precision, self._arguments(step), **constants)

    def _flow(self, step: int | None, update: bool) -> Launch:
        """Update of the actions by the velocity, then tokens for flow step `step` unless None."""
        heads, buffers, guide, embeds = self._heads, self._buffers, self._guide, step is not None
        last = (step or self._weights.steps) - 1
        scale = _of_step(self._modulation.scale, last)
        shift = _of_step(self._modulation.final_shift, last)
        following = _of_step(self._modulation.scale, step or 0)[0]
        mixes = heads.mixer is not None
        half = (step or 0) * self._layers % 2
        arguments = (
            *(buffers.x, scale[-1], shift),
            *(heads.out_weight if update else None, heads.out_bias, -1.0 / self._weights.steps),
            *(buffers.actions, int(mixes)),
            *(guide.target, guide.weights, guide.gammas[last:], guide.frozen),
            *(1 - last / self._weights.steps, self._clean_steps(step or 0) * scale.numel()),
            *(heads.in_weight if embeds else None, _of_step(heads.in_bias, step or 0)),
            *(None if mixes else buffers.x, following, buffers.scales[1, 0, 0]),
            buffers.embedded if mixes else buffers.exchange['normed_qkv'][half],
            buffers.exchange['statistics_qkv'][half],
        )
        kernel = self._library.kernel('expert_flow', f'expert_flow_{self._weights.precision}')
        return Launch(kernel, len(buffers.actions), FLOW_THREADS, arguments, FLOW_SHARED if update else 0)

    def _arguments(self, step: int) -> LayerArguments:
        weights, modulation, buffers = self._weights, self._modulation, self._buffers
        products = {f'{name}_weights': weights.products[name].weights for name in PRODUCTS}
        column_scales = {f'{name}_scale': weights.products[name].scale for name in PRODUCTS}
        mixer = self._heads.mixer
        return layer_arguments(
            **products,
            **column_scales,
            **buffers.exchange,
            mixer_weights=mixer.weights if mixer else None,
            mixer_scale=mixer.scale if mixer else None,
            qkv_bias=_of_step(modulation.qkv_bias, step),
            gate_up_bias=_of_step(modulation.gate_up_bias, step),
            gate=_of_step(modulation.gate, step),
            norm_scale=_of_step(modulation.scale, step),
            scales=buffers.scales,
            rotary=buffers.rotary,
            length=self._prefix.length,
            prefix_k=self._prefix.keys,
            prefix_v=self._prefix.values,
            x=buffers.x,
            base=buffers.base,
            embedded=buffers.embedded,
            stamps=self._stamps,
            capacity=self._prefix.keys.shape[1],
            layers=self._layers,
            rows=buffers.rows,
            state_token=int(mixer is not None),
            first=step * self._layers,
            step=step,
            phases=LAYER | (Phase.EMBED if mixer else 0),
            normed_layers=self._layers,
            **{f'kept_{name}': tensor for name, tensor in self._kept.items()},
            frozen=self._guide.frozen,
            clean=self._clean_steps(step),
        )

    def _clean_steps(self, step: int) -> int:
        """Rows of the tables from a flow step to flow time 0; none where the modulation is constant."""
        return max(0, len(self._modulation.scale) - 1 - step)


def launch_layers(
    library: KernelLibrary, precision: str, arguments: LayerArguments, **constants: int
) -> Launch:
    """The launch of expert_layers.cu, compiled with given constants, on given arguments."""
    constants = constants | SWITCHES
    shared = 206 << 10 if constants.get('ALL_STEPS') else LAYERS_SHARED
    arguments.shared_bytes = shared
    kernel = library.kernel('expert_layers', 'expert_layers', **format_constants(precision), **constants)
    return Launch(kernel, LAYERS_BLOCKS, LAYERS_THREADS, (arguments,), shared, cooperative=True)


def format_constants(precision: str) -> dict[str, int]:
    """What the kernels of an expert in 'bf16', 'fp8' or 'int8' are compiled with."""
    return dtype_constants(product_dtype('expert.qkv', precision))


def _of_step(table: Tensor, step: int) -> Tensor:
    """Row of a table over flow steps; a table of one row holds for all of them."""
    return table[step % len(table)]
