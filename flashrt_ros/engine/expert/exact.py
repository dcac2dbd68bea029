"""The denoise loop with the true vector-Jacobian product: the action expert forward and back at every step.

Only the gradient of the actions is wanted, so weights, prefix, state token and flow time are constants. The
forward pass is that of the fused or the plain loop, which keep what the way back needs. The way back
multiplies by the weights in bf16 as they are, without transposed copies: gradient [rows, out] @ weight [out,
in]. The gradient of the residual stream is fp32; what products take and give is bf16.

Source of the formula: `models.guidance`. Each kernel's is in its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.expert.back import ResidentBack
from flashrt_ros.engine.expert.forward import FusedForward
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators.backward import AttentionScratch, BackwardOperators
from flashrt_ros.engine.operators.exact_ends import refusal as ends_refusal
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.towers.denoise import Modulations
from flashrt_ros.engine.towers.flow import FlowHeads
from flashrt_ros.models.spec import PolicySpec

BACK = 'exact.back.'

PREFIX = 'exact.'
"""Of the names of the plain loop's weights in bf16, where the engine's own loop has others."""


def refusal(spec: PolicySpec) -> str:
    """Why there are no kernels for this policy; '' where there are."""
    dim = spec.expert.head_dim
    if dim % 32 or dim < 64:
        return f'the way back through attention takes heads of 64, 96, ..., not of {dim}'
    return ends_refusal(spec.expert.width, spec.action_dim)


def exact_bytes(spec: PolicySpec) -> int:
    """GPU memory of its weights, if they are not shared: 0.62 GB at published sizes; the rest is little."""
    tower = spec.expert
    heads = tower.heads * tower.head_dim
    return 2 * tower.layers * tower.width * (2 * heads + 2 * tower.head_dim + 3 * tower.mlp)


class Forward(Protocol):
    """Flow steps that keep what the way back needs: `forward.FusedForward`, `towers.denoise.PlainDenoise`."""

    spec: PolicySpec
    heads: FlowHeads
    device: torch.device
    rows: int
    padded_rows: int
    rotary: Tensor
    actions: Tensor
    state: Tensor
    guide: GuideInputs

    def begin(self) -> None: ...
    def run_layers(self, step: int) -> None: ...
    def modulations(self, step: int) -> Modulations: ...
    def residual(self, norm: int) -> Tensor: ...
    def queries(self, layer: int) -> Tensor: ...
    def gate_up(self, layer: int) -> Tensor: ...
    def attended(self, layer: int) -> tuple[Tensor, Tensor]: ...


def own_weights(packed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Packed weights with those in bf16 that are packed for it in their places."""
    given = {name[len(PREFIX) :]: tensor for name, tensor in packed.items() if name.startswith(PREFIX)}
    return {**packed, **given}


class ExactDenoise:
    """All flow steps. actions, state, guide: as of `PlainDenoise`; `guide.frozen` is 0."""

    def __init__(
        self,
        operators: Operators,
        backward: BackwardOperators,
        forward: Forward,
        packed: Mapping[str, Tensor],
        cache: PrefixCache,
    ) -> None:
        self.operators, self.forward, self._backward = operators, forward, backward
        self.spec, self.cache = forward.spec, cache
        self.actions, self.state, self.guide = forward.actions, forward.state, forward.guide
        self._first = int(self.spec.has_state_token)
        resident = {name[len(BACK) :]: value.to(forward.device) for name, value in packed.items() if name.startswith(BACK)}
        weights, layers = own_weights(packed), range(self.spec.expert.layers)
        self._gradient = torch.zeros(forward.padded_rows, self.spec.expert.width, device=forward.device)
        self._back = None
        if resident and isinstance(forward, FusedForward):
            self._back = ResidentBack(operators.library, backward, forward, resident, cache, self._gradient)
        self._weights = {
            part: [weights[f'expert.{i}.{part}.weight'].to(forward.device) for i in layers]
            for part in ('qkv', 'o', 'gate_up', 'down')
        }
        self._allocate()
        self._ends = backward.ends(self.actions, self.guide, self._rows(self._gradient))

    def run(self) -> None:
        """Launch all flow steps on the current stream."""
        self.forward.begin()
        if self._back is not None:
            self._back.begin()
        for step in range(self.spec.steps):
            self.step(step)

    def step(self, step: int) -> None:
        """Launch one of them: forward and back."""
        forward, heads, modulations = self.forward, self.forward.heads, self.forward.modulations(step)
        forward.run_layers(step)
        x, before = self._rows(forward.residual(2 * self.spec.expert.layers)), modulations[-2]
        gate = None if before is None else before.gate
        out = self._rows(self._to_product)
        self._ends.begin(step, x, modulations[-1], gate, heads.out_weight, heads.out_bias, out)
        arriving = self._through_layers(modulations) if self._back is None else self._back.run(step)
        if self.spec.has_state_token:
            self._through_norm(0, arriving, modulations)
            product = heads.embed_gradient(self._rows(self._gradient), self.actions, step)
            self.operators.flow_step(self.actions, self._ends.velocity, self.guide, step, product)
            return
        x, upstream = self._rows(forward.residual(0)), self._arrived(arriving)
        self._ends.end(step, x, upstream, modulations[0], heads.into_actions)

    def _through_layers(self, modulations: Modulations) -> Tensor:
        """From the last layer's `_to_product` to what arrives at the first norm, [parts, rows, width]."""
        last = self.spec.expert.layers - 1
        arriving = self._through_layer(last, modulations)
        for index in reversed(range(last)):
            self._through_norm(2 * index + 2, arriving, modulations)
            arriving = self._through_layer(index, modulations)
        return arriving

    def _through_layer(self, index: int, modulations: Modulations) -> Tensor:
        """Likewise of one, to its first norm."""
        self._through_gate(index)
        arriving = self._multiply('gate_up', index, self._to_gate_up)
        self._through_norm(2 * index + 1, arriving, modulations)
        attended = self._multiply('o', index, self._to_product)
        self._through_attention(index, attended[0])
        return self._multiply('qkv', index, self._to_qkv)

    def _allocate(self) -> None:
        """What arrives behind each product in parts, and what goes back into each, [padded rows, columns]."""
        spec, rows, device = self.spec.expert, self.forward.padded_rows, self.forward.device

        def buffer(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        self._arriving = {}
        for part, (weight, *_) in self._weights.items():
            parts = 1 if part == 'o' else self._backward.parts(weight, rows)  # attention takes a whole one
            self._arriving[part] = buffer(parts, rows, weight.shape[1])
        self._to_product, self._to_gate_up = buffer(rows, spec.width), buffer(rows, 2 * spec.mlp)
        self._to_qkv = buffer(rows, (spec.heads + 2) * spec.head_dim)
        self._scratch = AttentionScratch(
            spec.heads, spec.head_dim, self.spec.horizon, self.cache.capacity, device
        )

    def _multiply(self, part: str, index: int, gradient: Tensor) -> Tensor:
        """Back through a product of a layer, bf16 [parts, padded rows, columns]."""
        self._backward.product(gradient, self._weights[part][index], self._arriving[part])
        return self._arriving[part]

    def _through_gate(self, index: int) -> None:
        """From `_to_product` of the down projection to `_to_gate_up`."""
        self._backward.gated_product(
            self._to_product,
            self._weights['down'][index],
            self.forward.gate_up(index),
            self._arriving['down'],
            self._to_gate_up,
        )

    def _rows(self, buffer: Tensor) -> Tensor:
        """Those of the actions: the state token's gradient is not wanted and stays 0."""
        return buffer[self._first : self.forward.rows]

    def _arrived(self, parts: Tensor) -> Tensor:
        """`_rows` of each part."""
        return parts[:, self._first : self.forward.rows]

    def _through_norm(self, norm: int, upstream: Tensor, modulations: Modulations) -> None:
        """From `upstream` to `_gradient` of the residual stream, and to `_to_product` in front of it."""
        own, before = modulations[norm], modulations[norm - 1] if norm else None
        self._backward.norm(
            self._rows(self.forward.residual(norm)),
            self._arrived(upstream),
            self._rows(self._gradient),
            self._rows(self._to_product) if norm else None,
            scale=None if own is None else own.scale,
            gate=None if before is None else before.gate,
        )

    def _through_attention(self, index: int, upstream: Tensor) -> None:
        """From `upstream` of its result to `_to_qkv`."""
        forward, cache = self.forward, self.cache
        attended, log_sums = forward.attended(index)
        self._backward.attention(
            self._rows(forward.queries(index)),
            cache.keys[index],
            cache.values[index],
            (self._rows(attended), self._rows(log_sums)),
            cache.length,
            forward.rotary,
            self._rows(upstream),
            self._rows(self._to_qkv),
            self._scratch,
            constant=self._first,
        )
