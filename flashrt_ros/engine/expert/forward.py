"""The fused action expert step by step, keeping what the way back of exact guidance needs.

The kernel is that of `expert.loop`, compiled to run one flow step and to write also what each norm
normalises, the rotated queries, keys and values, attention's result and sums, and gate and up, mostly in the
order in which the kernel of the way back reads them (kernels/expert_arguments.cuh, Kept).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.expert.buffers import ROWS, STATISTICS, ExpertBuffers, check_shape
from flashrt_ros.engine.expert.launches import ExpertLaunches
from flashrt_ros.engine.expert.loop import ExpertShape, Prefix
from flashrt_ros.engine.expert.weights import ExpertWeights
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.towers.denoise import Modulations, expert_modulations
from flashrt_ros.engine.towers.flow import FlowHeads
from flashrt_ros.models.spec import PolicySpec


class FusedForward:
    """Has the face of `towers.denoise.PlainDenoise` that `expert.exact` needs.

    kept: by the names in kernels/expert_arguments.cuh; modulation: of its norms.
    activation_scales: fp32 [L, 4] for fp8, None for bf16.
    """

    def __init__(
        self,
        operators: Operators,
        spec: PolicySpec,
        weights: ExpertWeights,
        activation_scales: Tensor | None,
        heads: FlowHeads,
        cache: PrefixCache,
        prefix_rows: int,
    ) -> None:
        self.spec, self.operators, self.heads = spec, operators, heads
        self.device = operators.library.gpu.device
        self.rows, self.padded_rows = spec.horizon + spec.has_state_token, ROWS
        shape, prefix = ExpertShape(spec.horizon, prefix_rows), Prefix(cache.keys, cache.values, cache.length)
        check_shape(shape, self.rows, prefix)
        self._buffers = ExpertBuffers(weights, activation_scales, shape, self.device)
        self.rotary = self._buffers.rotary
        self.actions, self.state = self._buffers.actions, torch.zeros(spec.action_dim, device=self.device)
        self.guide = GuideInputs(spec, self.device)
        self.modulation = weights.modulation
        self._allocate(cache)
        # Launches know their tensors by address only.
        self._launches = ExpertLaunches(
            operators.library, weights, self._buffers, prefix, self.guide, kept=self.kept
        )
        self._steps = [self._launches.step(step) for step in range(spec.steps)]

    def begin(self) -> None:
        """Launch what comes before the first step."""
        self._buffers.arena.copy_(self._buffers.initial)
        if self.spec.has_state_token:
            self._buffers.base[0].copy_(self.heads.state_token(self.state))

    def run_layers(self, step: int) -> None:
        """A flow step up to its last layer: `residual` of the final norm."""
        self._steps[step]()

    def modulations(self, step: int) -> Modulations:
        """Of every norm in order of use."""
        return expert_modulations(self.spec, self.heads, self.guide.frozen, step)

    def residual(self, norm: int) -> Tensor:
        """The residual stream that the first norm (0) or the last (2 L) has normalised, fp32 [64, width]."""
        return self.kept['x'][norm]

    def _allocate(self, cache: PrefixCache) -> None:
        tower = self.spec.expert
        layers, norms = tower.layers, 2 * tower.layers + 1

        def buffer(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=self.device)

        self.kept = {
            'x': buffer(norms, ROWS, tower.width, dtype=torch.float32),
            'queries': buffer(layers, ROWS, tower.heads * tower.head_dim),
            'keys': cache.keys,
            'values': cache.values,
            'gate_up': buffer(layers, ROWS * 2 * tower.mlp),
            'attended': buffer(layers, tower.heads * ROWS * tower.head_dim),
            'log_sums': buffer(layers, tower.heads * ROWS, dtype=torch.float32),
            'squares': buffer(norms, ROWS, STATISTICS, dtype=torch.float32),
        }
