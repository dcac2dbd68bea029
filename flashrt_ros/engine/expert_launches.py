"""Every launch of the action expert's denoise loop, in order, with its arguments.

A flow step is one flow kernel (for pi0 also its second embedding layer) and five kernels a layer. The tensors
are static, so the whole list is made once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flashrt_ros.engine.expert_buffers import (
    ACTION_DIM,
    ATTENTION_CLUSTER,
    ATTENTION_QUERIES,
    HEAD_DIM,
    HEADS,
    MLP,
    WIDTH,
    ExpertBuffers,
    Prefix,
    attention_bytes,
)
from flashrt_ros.engine.expert_weights import PRODUCTS, ExpertWeights, Product
from flashrt_ros.engine.launcher import Kernel
from flashrt_ros.engine.library import KernelLibrary

THREADS = 256
RESIDUAL_CLUSTER = 4
FLOW_SHARED = ACTION_DIM * WIDTH * 4
LEAST_SHARED = {'gate_up': 98 << 10}
"""Shared memory asked for beyond need, so that no multiprocessor takes two blocks while another has none."""


@dataclass(frozen=True)
class Launch:
    kernel: Kernel
    grid: int
    arguments: tuple[Any, ...]
    shared: int
    cluster: int | None = None

    def __call__(self, dependent: bool) -> None:
        self.kernel(
            self.grid,
            THREADS,
            *self.arguments,
            shared=self.shared,
            cluster=self.cluster,
            dependent=dependent,
        )


class ExpertLaunches:
    """Builds the launches of all flow steps on given buffers."""

    def __init__(
        self, library: KernelLibrary, weights: ExpertWeights, buffers: ExpertBuffers, prefix: Prefix
    ) -> None:
        self._library, self._weights, self._buffers, self._prefix = library, weights, buffers, prefix
        self._modulation, self._heads = weights.modulation, weights.heads
        self._layers = len(weights.products['qkv'].weights)

    def all(self) -> Iterator[Launch]:
        """Embedding, then for each step its layers, the update of the actions, and the next embedding."""
        yield from self._embed(0, update=False)
        for step in range(self._weights.steps):
            for layer in range(self._layers):
                yield from self._layer(step, layer)
            if step + 1 < self._weights.steps:
                yield from self._embed(step + 1, update=True)
        yield self._flow(None, update=True)

    def _embed(self, step: int, update: bool) -> Iterator[Launch]:
        """Actions to tokens: one kernel, and for pi0 its second embedding layer on bias and state token."""
        yield self._flow(step, update)
        mixer, buffers = self._heads.mixer, self._buffers
        if mixer is not None:
            ones = buffers.ones
            yield self._residual('embed', mixer, 0, ones, buffers.embedded, buffers.base, ones, step, 0)

    def _layer(self, step: int, layer: int) -> Iterator[Launch]:
        products, buffers = self._weights.products, self._buffers
        own = buffers.scales[0, layer]
        gate = _of_step(self._modulation.gate, step)
        yield self._qkv(step, layer)
        yield self._attention(layer)
        yield self._residual(
            *('output', products['output'], layer, own[1], buffers.attended, buffers.x),
            *(gate[2 * layer], step, 2 * layer + 1),
        )
        yield self._gate_up(step, layer)
        yield self._residual(
            *('down', products['down'], layer, own[3], buffers.hidden, buffers.x),
            *(gate[2 * layer + 1], step, 2 * layer + 2),
        )

    def _flow(self, step: int | None, update: bool) -> Launch:
        """Update of the actions by the velocity, then tokens for flow step `step` unless None."""
        heads, buffers, embeds = self._heads, self._buffers, step is not None
        scale = _of_step(self._modulation.scale, (step or self._weights.steps) - 1)
        shift = _of_step(self._modulation.final_shift, (step or self._weights.steps) - 1)
        following = _of_step(self._modulation.scale, step or 0)[0]
        mixes = heads.mixer is not None
        arguments = (
            *(buffers.x, scale[-1], shift),
            *(heads.out_weight if update else None, heads.out_bias, -1.0 / self._weights.steps),
            *(buffers.actions, int(mixes)),
            *(heads.in_weight if embeds else None, _of_step(heads.in_bias, step or 0)),
            *(None if mixes else buffers.x, following, buffers.scales[1, 0, 0]),
            *(buffers.embedded if mixes else buffers.normed[0], buffers.statistics[0]),
        )
        kernel = self._kernel('flow', 'flow')
        return Launch(kernel, len(buffers.actions), arguments, FLOW_SHARED if update else 0)

    def _qkv(self, step: int, layer: int) -> Launch:
        product, buffers = self._weights.products['qkv'], self._buffers
        arguments = (
            *(buffers.normed[0], buffers.statistics[0], product.weights[layer], product.scale[layer]),
            *(_of_step(self._modulation.qkv_bias, step)[layer], buffers.scales[0, layer, 0]),
            *(buffers.rotary, self._prefix.length, buffers.rows),
            *(buffers.queries, buffers.keys, buffers.values),
        )
        return self._product('qkv', 'qkv', arguments, product.weights[layer], (HEADS + 2) * HEAD_DIM // 32)

    def _attention(self, layer: int) -> Launch:
        """It also has the largest weights that follow brought into L2."""
        prefix, buffers = self._prefix, self._buffers
        blocks = -(-HEADS * buffers.rows // ATTENTION_QUERIES) * ATTENTION_CLUSTER
        later = self._weights.products['gate_up'].weights[layer]
        arguments = (
            *(buffers.queries, prefix.keys[layer], prefix.values[layer], buffers.keys, buffers.values),
            *(prefix.length, buffers.rows, self._heads.mixer is not None, buffers.scales[1, layer, 1]),
            *(buffers.attended, later, later.numel() // blocks // 16 * 16),
        )
        shared = attention_bytes(buffers.prefix_capacity)
        kernel = self._kernel('attention', 'attention')
        return Launch(kernel, blocks, arguments, shared, ATTENTION_CLUSTER)

    def _gate_up(self, step: int, layer: int) -> Launch:
        product, buffers = self._weights.products['gate_up'], self._buffers
        arguments = (
            *(buffers.normed[1], buffers.statistics[1], product.weights[layer], product.scale[layer]),
            *(_of_step(self._modulation.gate_up_bias, step)[layer], buffers.scales[0, layer, 2]),
            *(buffers.scales[1, layer, 3], buffers.rows, buffers.hidden),
        )
        return self._product('gate_up', 'gate_up', arguments, product.weights[layer], MLP // 32)

    def _residual(
        self,
        name: str,
        product: Product,
        layer: int,
        own_scale: Tensor,
        fragments: Tensor,
        x: Tensor,
        gate: Tensor,
        step: int,
        following: int,
    ) -> Launch:
        """Projection to the residual stream; `following` is the norm that reads it."""
        buffers, which = self._buffers, following % 2
        inverse = buffers.scales[1, min(following // 2, self._layers - 1), PRODUCTS.index('gate_up') * which]
        arguments = (
            *(fragments, product.weights[layer], product.scale[layer], own_scale, gate, x, buffers.x),
            *(_of_step(self._modulation.scale, step)[following], inverse),
            *(buffers.normed[which], buffers.statistics[which], buffers.rows),
        )
        blocks = WIDTH // 32 * RESIDUAL_CLUSTER
        return self._product('residual', name, arguments, product.weights[layer], blocks, RESIDUAL_CLUSTER)

    def _product(
        self,
        file: str,
        name: str,
        arguments: tuple[Any, ...],
        weights: Tensor,
        blocks: int,
        cluster: int | None = None,
    ) -> Launch:
        """A launch whose blocks each keep an equal slice of `weights` in shared memory."""
        shared = max(weights.numel() // blocks, LEAST_SHARED.get(name, 0))
        return Launch(self._kernel(file, name), blocks, arguments, shared, cluster)

    def _kernel(self, file: str, name: str) -> Kernel:
        return self._library.kernel(f'expert_{file}', f'expert_{name}_{self._weights.precision}')


def _of_step(table: Tensor, step: int) -> Tensor:
    """Row of a table over flow steps; a table of one row holds for all of them."""
    return table[step % len(table)]
