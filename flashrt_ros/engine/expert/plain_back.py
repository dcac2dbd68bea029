"""The way back through the action expert's layers kernel by kernel, on every GPU and for every size.

The way back multiplies by the weights in bf16 as they are, without transposed copies: gradient [rows, out] @
weight [out, in]. The gradient of the residual stream is fp32; what products take and give is bf16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.operators.backward import AttentionScratch, BackwardOperators
from flashrt_ros.engine.towers.denoise import Modulations, PlainDenoise


class PlainBack:
    """Implements `expert.exact.Back`.

    packed: with `expert.*` in bf16. gradient: of the residual stream, fp32 [padded rows, width], which `run`
    changes. to_product: what the last layer's last product gets, bf16 of that shape, which it overwrites.
    """

    def __init__(
        self,
        backward: BackwardOperators,
        forward: PlainDenoise,
        packed: Mapping[str, Tensor],
        cache: PrefixCache,
        gradient: Tensor,
        to_product: Tensor,
    ) -> None:
        self._to_product = to_product
        self._backward, self.forward, self.cache, self._gradient = backward, forward, cache, gradient
        self._first, self._layers = int(forward.spec.has_state_token), forward.spec.expert.layers
        self._weights = {
            part: [packed[f'expert.{i}.{part}.weight'].to(forward.device) for i in range(self._layers)]
            for part in ('qkv', 'o', 'gate_up', 'down')
        }
        self._allocate()

    def begin(self) -> None:
        """Nothing has to be launched before the first step."""

    def run(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Launch a step's way back; what arrives at the first norm, bf16 [parts, padded rows, width], and
        that norm's scale, which is still to be applied."""
        modulations, last = self.forward.modulations(step), self._layers - 1
        arriving = self._through_layer(last, modulations)
        for index in reversed(range(last)):
            self._through_norm(2 * index + 2, arriving, modulations)
            arriving = self._through_layer(index, modulations)
        return arriving, None if modulations[0] is None else modulations[0].scale

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
        policy, rows, device = self.forward.spec, self.forward.padded_rows, self.forward.device
        spec = policy.expert

        def buffer(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        self._arriving = {}
        for part, (weight, *_) in self._weights.items():
            parts = 1 if part == 'o' else self._backward.parts(weight, rows)  # attention takes a whole one
            self._arriving[part] = buffer(parts, rows, weight.shape[1])
        self._to_gate_up = buffer(rows, 2 * spec.mlp)
        self._to_qkv = buffer(rows, (spec.heads + 2) * spec.head_dim)
        self._scratch = AttentionScratch(
            spec.heads, spec.head_dim, policy.horizon, self.cache.capacity, device
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
