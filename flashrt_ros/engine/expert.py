"""The denoise loop of pi0 and pi0.5 on Hopper: all flow steps as one chain of fused kernels, five a layer.

    loop = ExpertLoop(library, weights, scales, ExpertShape(horizon=50, prefix_capacity=712), prefix)
    loop.actions.copy_(noise); loop.launch()          # inside a graph capture; then loop.actions holds the actions

Kernels are chained by programmatic dependent launch: each fetches its weights into shared memory while the one before
it still runs (kernels/expert_common.cuh). The first one launches plainly, so that everything recorded before the loop
has finished when it starts: the kernels read the prefix, its length and all tables before they wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashrt_ros.engine.expert_weights import PRODUCTS, ExpertWeights, Product
from flashrt_ros.engine.launcher import Kernel
from flashrt_ros.engine.library import KernelLibrary
from flashrt_ros.errors import BackendError
from flashrt_ros.models.gemma import rotary_table

WIDTH, HEADS, HEAD_DIM, MLP = 1024, 8, 256, 4096
ACTION_DIM = 32
ROWS = 64
"""Rows of the matrix products, the height of one wgmma; suffix tokens beyond the last one are ignored."""

STATISTICS = 32
THREADS = 256
RESIDUAL_CLUSTER, ATTENTION_CLUSTER = 4, 8
ATTENTION_QUERIES, ATTENTION_MAX_KEYS = 32, 160
FLOW_SHARED = ACTION_DIM * WIDTH * 4
LEAST_SHARED = {'qkv': 65 << 10, 'gate_up': 98 << 10, 'down': 47 << 10}
"""Shared memory asked for beyond need, so that no multiprocessor takes two blocks of a product while others have none,
and yet the attention fits beside q, k, v."""


@dataclass(frozen=True)
class ExpertShape:
    """horizon: action rows. prefix_capacity: most prefix tokens. lookahead: how many kernels ahead weights are brought
    into L2, 0 for not at all."""

    horizon: int
    prefix_capacity: int
    lookahead: int = 0


@dataclass(frozen=True)
class Prefix:
    """Static buffers that the prefill fills: keys (rotated) and values bf16 [L, capacity, 256], length int32 [1]."""

    keys: Tensor
    values: Tensor
    length: Tensor


@dataclass(frozen=True)
class Step:
    """One launch. weights: what it streams, for the lookahead of the kernels before it; None if nothing."""

    kernel: Kernel
    grid: int
    arguments: tuple[Any, ...]
    shared: int
    cluster: int | None = None
    weights: Tensor | None = None
    takes_lookahead: bool = True


class ExpertLoop:
    """All flow steps of one action expert. Owns its buffers; nothing is allocated after construction.

    actions: fp32 [horizon, 32], the noise (t = 1) before `launch` and the normalised actions (t = 0) after it.
    state_token: fp32 [1024], pi0's projected state, read by `launch`; None for pi0.5.
    activation_scales: fp32 [L, 4] for fp8 (`expert_ranges.activation_scales`), None for bf16.
    """

    def __init__(
        self,
        library: KernelLibrary,
        weights: ExpertWeights,
        activation_scales: Tensor | None,
        shape: ExpertShape,
        prefix: Prefix,
    ) -> None:
        self._library, self._weights, self._shape, self._prefix = library, weights, shape, prefix
        self._layers = len(weights.products['qkv'].weights)
        self._has_state = weights.heads.mixer is not None
        self._rows = shape.horizon + self._has_state
        _check_shape(shape, self._rows, prefix)
        self._scales = self._make_scales(activation_scales)
        self._allocate()
        self._plan = self._make_plan()

    def launch(self) -> None:
        """Record all flow steps on the current stream."""
        for i, step in enumerate(self._plan):
            arguments = step.arguments
            if step.takes_lookahead:
                arguments = (*arguments, *self._lookahead(i))
            step.kernel(
                step.grid,
                THREADS,
                *arguments,
                shared=step.shared,
                cluster=step.cluster,
                dependent=i > 0,
            )

    def _make_scales(self, activation_scales: Tensor | None) -> Tensor:
        """[2, L, 4]: the scales and their inverses."""
        device = self._prefix.length.device
        if self._weights.precision == 'bf16':
            return torch.ones(2, self._layers, len(PRODUCTS), device=device)
        if activation_scales is None or activation_scales.shape != (self._layers, len(PRODUCTS)):
            raise BackendError(
                f'fp8 needs activation scales of shape {(self._layers, len(PRODUCTS))}',
                'action expert',
                'calibrate first',
            )
        scales = activation_scales.to(device, torch.float32)
        return torch.stack([scales, 1 / scales])

    def _allocate(self) -> None:
        device = self._prefix.length.device
        size = 1 if self._weights.precision == 'fp8' else 2

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.actions = zeros(self._shape.horizon, ACTION_DIM)
        self._x = zeros(ROWS, WIDTH)
        self._base = zeros(ROWS, WIDTH)
        self.state_token: Tensor | None = None
        if self._weights.heads.mixer_bias is not None:
            self._base[:] = self._weights.heads.mixer_bias
            self.state_token = self._base[0].zero_()
        self._ones = zeros(WIDTH).fill_(1)
        self._statistics = zeros(2, STATISTICS, ROWS)
        self._embedded = zeros(ROWS * WIDTH * 2, dtype=torch.uint8)
        self._normed = zeros(2, ROWS * WIDTH * size, dtype=torch.uint8)
        self._attended = zeros(ROWS * HEADS * HEAD_DIM * size, dtype=torch.uint8)
        self._hidden = zeros(ROWS * MLP * size, dtype=torch.uint8)
        self._queries = zeros(ROWS * HEADS, HEAD_DIM, dtype=torch.bfloat16)
        self._keys, self._values = zeros(2, ROWS, HEAD_DIM, dtype=torch.bfloat16)
        positions = torch.arange(self._shape.prefix_capacity + ROWS, device=device)
        self._rotary = torch.stack(rotary_table(positions, HEAD_DIM), -1).contiguous()

    def _kernel(self, file: str, name: str | None = None) -> Kernel:
        return self._library.kernel(f'expert_{file}', f'expert_{name or file}_{self._weights.precision}')

    def _make_plan(self) -> list[Step]:
        plan = [*self._embed(0, update=False)]
        for step in range(self._weights.steps):
            for layer in range(self._layers):
                plan += self._layer(step, layer)
            if step + 1 < self._weights.steps:
                plan += self._embed(step + 1, update=True)
        return [*plan, self._flow(None, update=True)]

    def _embed(self, step: int, update: bool) -> list[Step]:
        """Actions to tokens: one kernel, and for pi0 its second embedding layer on the bias and the state token."""
        flow, heads = self._flow(step, update), self._weights.heads
        if heads.mixer is None:
            return [flow]
        mixer = self._residual('embed', heads.mixer, 0, self._embedded, self._base, self._ones, step, 0)
        return [flow, mixer]

    def _flow(self, step: int | None, update: bool) -> Step:
        """Update of the actions by the velocity, then tokens for flow step `step` unless None."""
        heads, modulation = self._weights.heads, self._weights.modulation
        last = (step or self._weights.steps) - 1
        scale = modulation.scale[last % len(modulation.scale)]
        shift = modulation.final_shift[last % len(modulation.scale)]
        embeds = step is not None
        direct = not self._has_state
        following = modulation.scale[(step or 0) % len(modulation.scale), 0]
        arguments = (
            *(self._x, scale[-1], shift),
            *(heads.out_weight if update else None, heads.out_bias, -1.0 / self._weights.steps),
            *(self.actions, int(self._has_state)),
            *(heads.in_weight if embeds else None, heads.in_bias[(step or 0) % len(heads.in_bias)]),
            *(self._x if direct else None, following, self._scales[1, 0, 0]),
            *(self._normed[0] if direct else self._embedded, self._statistics[0]),
        )
        shared = FLOW_SHARED if update else 0
        return Step(self._kernel('flow'), self._shape.horizon, arguments, shared, takes_lookahead=False)

    def _layer(self, step: int, layer: int) -> list[Step]:
        products = self._weights.products
        modulation = self._weights.modulation
        gate = modulation.gate[step % len(modulation.gate)]
        return [
            self._qkv(step, layer),
            self._attention(layer),
            self._residual(
                'output',
                products['output'],
                layer,
                self._attended,
                self._x,
                gate[2 * layer],
                step,
                2 * layer + 1,
            ),
            self._gate_up(step, layer),
            self._residual(
                'down',
                products['down'],
                layer,
                self._hidden,
                self._x,
                gate[2 * layer + 1],
                step,
                2 * layer + 2,
            ),
        ]

    def _qkv(self, step: int, layer: int) -> Step:
        product, modulation = self._weights.products['qkv'], self._weights.modulation
        arguments = (
            *(self._normed[0], self._statistics[0], product.weights[layer], product.scale[layer]),
            *(modulation.qkv_bias[step % len(modulation.qkv_bias), layer], self._scales[0, layer, 0]),
            *(self._rotary, self._prefix.length, self._rows, self._queries, self._keys, self._values),
        )
        return self._streaming('qkv', 'qkv', arguments, product.weights[layer], (HEADS + 2) * HEAD_DIM // 32)

    def _attention(self, layer: int) -> Step:
        prefix = self._prefix
        arguments = (
            *(self._queries, prefix.keys[layer], prefix.values[layer], self._keys, self._values),
            *(prefix.length, self._rows, self._has_state, self._scales[1, layer, 1], self._attended),
        )
        blocks = -(-HEADS * self._rows // ATTENTION_QUERIES) * ATTENTION_CLUSTER
        shared = attention_bytes(self._shape.prefix_capacity)
        return Step(self._kernel('attention'), blocks, arguments, shared, ATTENTION_CLUSTER)

    def _gate_up(self, step: int, layer: int) -> Step:
        product, modulation = self._weights.products['gate_up'], self._weights.modulation
        arguments = (
            *(self._normed[1], self._statistics[1], product.weights[layer], product.scale[layer]),
            *(modulation.gate_up_bias[step % len(modulation.gate_up_bias), layer], self._scales[0, layer, 2]),
            *(self._scales[1, layer, 3], self._rows, self._hidden),
        )
        return self._streaming('gate_up', 'gate_up', arguments, product.weights[layer], MLP // 32)

    def _residual(
        self,
        name: str,
        product: Product,
        layer: int,
        fragments: Tensor,
        x: Tensor,
        gate: Tensor,
        step: int,
        following: int,
    ) -> Step:
        """Projection to the residual stream; `following` is the norm that reads it."""
        modulation = self._weights.modulation
        which = following % 2
        scales = self._scales[:, min(following // 2, self._layers - 1)]
        own = self._ones if name == 'embed' else self._scales[0, layer, PRODUCTS.index(name)]
        arguments = (
            *(fragments, product.weights[layer], product.scale[layer], own, gate, x, self._x),
            *(modulation.scale[step % len(modulation.scale), following], scales[1, 2 * which]),
            *(self._normed[which], self._statistics[which], self._rows),
        )
        return self._streaming(
            'residual',
            name,
            arguments,
            product.weights[layer],
            WIDTH // 32 * RESIDUAL_CLUSTER,
            RESIDUAL_CLUSTER,
        )

    def _streaming(
        self,
        file: str,
        name: str,
        arguments: tuple[Any, ...],
        weights: Tensor,
        blocks: int,
        cluster: int | None = None,
    ) -> Step:
        """A launch whose blocks each keep an equal slice of `weights` in shared memory."""
        shared = max(weights.numel() // blocks, LEAST_SHARED.get(name, 0))
        return Step(self._kernel(file, name), blocks, arguments, shared, cluster, weights)

    def _lookahead(self, index: int) -> tuple[Tensor | None, int]:
        """(weights to bring into L2, bytes of it a block) for the launch `index`."""
        ahead = index + self._shape.lookahead
        if ahead == index or ahead >= len(self._plan) or self._plan[ahead].weights is None:
            return None, 0
        weights = self._plan[ahead].weights
        assert weights is not None
        return weights, weights.numel() // self._plan[index].grid // 16 * 16


def attention_bytes(capacity: int) -> int:
    """Dynamic shared memory of expert_attention.cu for prefixes of up to `capacity` tokens."""
    slots, row_bytes = _attention_slots(capacity), HEAD_DIM * 2
    merging = ATTENTION_CLUSTER * 4 * 32 * 16
    return max(slots * row_bytes, merging) + slots * row_bytes + ATTENTION_QUERIES * (slots + 4) * 4


def _attention_slots(capacity: int) -> int:
    share = -(-capacity // (8 * ATTENTION_CLUSTER)) * 8
    return -(-(share + ROWS // ATTENTION_CLUSTER) // 16) * 16


def _check_shape(shape: ExpertShape, rows: int, prefix: Prefix) -> None:
    if not 0 < shape.horizon or rows > ROWS:
        raise BackendError(
            f'horizon {shape.horizon} gives {rows} rows, the kernels take 1 to {ROWS}',
            'action expert',
            'choose a checkpoint with a shorter horizon',
        )
    if (
        _attention_slots(shape.prefix_capacity) > ATTENTION_MAX_KEYS
        or prefix.keys.shape[1] < shape.prefix_capacity
    ):
        raise BackendError(
            f'a prefix of {shape.prefix_capacity} tokens does not fit (buffers hold {prefix.keys.shape[1]})',
            'action expert',
            'use fewer views or a shorter prompt',
        )
