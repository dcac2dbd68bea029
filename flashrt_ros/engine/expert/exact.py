"""The denoise loop with the true vector-Jacobian product: the action expert forward and back at every step.

Only the gradient of the actions is wanted, so weights, prefix, state token and flow time are constants. The
forward pass is that of the fused or the plain loop, which keep what the way back needs. The way back is one
kernel behind the fused loop (`expert.back`) and a chain of them behind the plain one (`expert.plain_back`).
It multiplies in bf16, in the kernel behind a fused loop in fp8 E5M2 by E4M3; the gradient of the residual
stream is fp32.

Source of the formula: `models.guidance`. Each kernel's is in its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.expert.back import ResidentBack
from flashrt_ros.engine.expert.denoise import covers
from flashrt_ros.engine.expert.forward import FusedForward
from flashrt_ros.engine.expert.plain_back import PlainBack
from flashrt_ros.engine.operators.backward import BackwardOperators
from flashrt_ros.engine.operators.exact_ends import refusal as ends_refusal
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.towers.denoise import PlainDenoise
from flashrt_ros.engine.weights.formats import tower_format
from flashrt_ros.models.spec import PolicySpec

PREFIX = 'exact.'
"""Of the names of the plain loop's weights in bf16, where the engine's own loop has others."""

BACK = 'exact.back.'
"""Of the names of those of `expert.back`."""


def refusal(spec: PolicySpec) -> str:
    """Why there are no kernels for this policy; '' where there are."""
    dim = spec.expert.head_dim
    if dim % 32 or dim < 64:
        return f'the way back through attention takes heads of 64, 96, ..., not of {dim}'
    return ends_refusal(spec.expert.width, spec.action_dim)


def back_format(gpu: Gpu, spec: PolicySpec, precision: str) -> str:
    """'bf16' or 'fp8': what the way back multiplies in, in a policy of this precision.

    fp8 where the fused loop is E4M3. pi0's integers are for a family that E4M3 is too coarse for.
    """
    fp8 = covers(gpu, spec) and tower_format(spec, precision, 'expert', integers=False) == 'fp8'
    return 'fp8' if fp8 else 'bf16'


def exact_bytes(spec: PolicySpec, form: str = 'bf16') -> int:
    """GPU memory of its weights, if they are not shared: 0.62 GB at published sizes in bf16, 0.31 in fp8; the
    rest is little. form: as of `back_format`."""
    tower = spec.expert
    heads = tower.heads * tower.head_dim
    values = tower.width * (2 * heads + 2 * tower.head_dim + 3 * tower.mlp)
    scales = 4 * (2 * tower.width + heads + tower.mlp)  # of columns, fp32
    return tower.layers * (2 * values if form == 'bf16' else values + scales)


Forward = FusedForward | PlainDenoise
"""Flow steps that keep what the way back needs."""


def own_weights(packed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Packed weights with those in bf16 that are packed for it in their places."""
    given = {name[len(PREFIX) :]: tensor for name, tensor in packed.items() if name.startswith(PREFIX)}
    return {**packed, **given}


class Back(Protocol):
    """The way back through the layers."""

    def begin(self) -> None: ...
    def run(self, step: int) -> tuple[Tensor, Tensor | None]: ...


class ExactDenoise:
    """All flow steps. actions, state, guide: as of `PlainDenoise`; `guide.frozen` is 0.

    packed: with the weights of `expert.back` where the forward pass is the fused one. stamps: of that way
    back.
    """

    def __init__(
        self,
        operators: Operators,
        backward: BackwardOperators,
        forward: Forward,
        packed: Mapping[str, Tensor],
        cache: PrefixCache,
        stamps: Tensor | None = None,
    ) -> None:
        self.operators, self.forward, self._backward = operators, forward, backward
        self.spec, self.cache = forward.spec, cache
        self.actions, self.state, self.guide = forward.actions, forward.state, forward.guide
        self._first = int(self.spec.has_state_token)
        rows, width = forward.padded_rows, self.spec.expert.width
        self._gradient = torch.zeros(rows, width, device=forward.device)
        self._to_product = torch.zeros(rows, width, dtype=torch.bfloat16, device=forward.device)
        self._back: Back
        if isinstance(forward, FusedForward):
            weights = {
                name[len(BACK) :]: value.to(forward.device)
                for name, value in packed.items()
                if name.startswith(BACK)
            }
            given = weights, cache, self._gradient, stamps
            self._back = ResidentBack(operators.library, forward, *given)
        else:
            buffers = cache, self._gradient, self._to_product
            self._back = PlainBack(backward, forward, own_weights(packed), *buffers)
        self._ends = backward.ends(self.actions, self.guide, self._rows(self._gradient))

    def run(self) -> None:
        """Launch all flow steps on the current stream."""
        self.forward.begin()
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
        parts, scale = self._back.run(step)
        x, arriving = self._rows(forward.residual(0)), parts[:, self._first : forward.rows]
        if self.spec.has_state_token:
            self._backward.norm(x, arriving, self._rows(self._gradient), None, scale=scale)
            product = heads.embed_gradient(self._rows(self._gradient), self.actions, step)
            self.operators.flow_step(self.actions, self._ends.velocity, self.guide, step, product)
            return
        self._ends.end(step, x, arriving, scale, heads.into_actions)

    def _rows(self, buffer: Tensor) -> Tensor:
        """Those of the actions: the state token's gradient is not wanted and stays 0."""
        return buffer[self._first : self.forward.rows]
