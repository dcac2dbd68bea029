"""A random action expert of published width behind a random prefix, for tests and benchmarks of the denoise
loop.

The other towers of the policy cost next to nothing, so that only the loop matters; the plain model in fp32
says what is right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.expert_ranges import ExpertRanges, activation_scales
from flashrt_ros.engine.buffers import PrefixCache, round_up
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.exact import ExactDenoise, Forward, own_weights
from flashrt_ros.engine.expert.forward import FusedForward
from flashrt_ros.engine.expert.loop import ExpertLoop, ExpertShape, Prefix
from flashrt_ros.engine.expert.weights import pack_expert
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators.backward import BackwardOperators
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.towers.denoise import PlainDenoise
from flashrt_ros.engine.towers.flow import FlowHeads, flow_table, pack_flow
from flashrt_ros.engine.weights.store import pack_exact
from flashrt_ros.models.gemma import Cache, rotary_table
from flashrt_ros.models.guidance import Guide
from flashrt_ros.models.pi import PiModel, load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import GEMMA_300M, GemmaSpec, PolicySpec, VisionSpec

CALIBRATION_LENGTH = 562
"""Prefix of two views and 50 prompt tokens."""


@dataclass(frozen=True)
class TrialShape:
    """layers, horizon and steps of the policy; capacity: rows of the prefix buffers."""

    layers: int = 2
    horizon: int = 50
    steps: int = 3
    capacity: int = 712


class ExpertTrial:
    """`loop` and the plain `model` on the same weights. Rows of the prefix behind its length are NaN."""

    def __init__(
        self,
        library: KernelLibrary,
        family: str,
        precision: str,
        shape: TrialShape,
        seed: int = 0,
        stamps: Tensor | None = None,
    ) -> None:
        self.library, self.spec = library, small_policy(family, shape)
        self.tensors = random_tensors(self.spec, seed, torch.float32, 'cuda')
        self.model = load_model(self.spec, self.tensors, torch.float32)
        self._generator = torch.Generator('cuda').manual_seed(seed)
        rows = (shape.layers, shape.capacity, GEMMA_300M.head_dim)
        keys, values = (torch.full(rows, float('nan'), dtype=torch.bfloat16, device='cuda') for _ in range(2))
        self.prefix = Prefix(keys, values, torch.zeros(1, dtype=torch.int32, device='cuda'))
        with torch.no_grad():
            self._table = self.model.flow_table(shape.steps)
            self.weights = pack_expert(
                self.spec, self.tensors, flow_table(self.tensors, self.spec), precision
            )
            self.scales = self._calibrate() if precision != 'bf16' else None
        self.guide = GuideInputs(self.spec, self.prefix.length.device)
        sizes = ExpertShape(shape.horizon, shape.capacity)
        self.loop = ExpertLoop(library, self.weights, self.scales, sizes, self.prefix, self.guide, stamps)

    def observe(self, length: int) -> tuple[Tensor, Tensor]:
        """Fill the prefix with fresh values; returns (noise [H, 32], state [32])."""
        for buffer in (self.prefix.keys, self.prefix.values):
            buffer[:, :length] = self._draw(len(buffer), length, buffer.shape[2]).bfloat16()
        self.prefix.length.fill_(length)
        return self._draw(self.spec.horizon, self.spec.action_dim), self._draw(self.spec.action_dim)

    @torch.no_grad()
    def expected(
        self, noise: Tensor, state: Tensor, model: PiModel | None = None, guide: Guide | None = None
    ) -> Tensor:
        """Actions of the plain model, fp32 unless another is given."""
        model = model or self.model
        caches = self._caches(model.dtype)
        if self.spec.has_state_token:
            token = model.state_proj(state[None])[:, None].to(model.dtype)
            position = self.prefix.length.long()
            caches = model.expert(token, rotary_table(position, GEMMA_300M.head_dim), caches)[1]
        return model.denoise(noise[None], caches, self._table, guide)[0]

    @torch.no_grad()
    def found(self, noise: Tensor, state: Tensor, guide: Guide | None = None) -> Tensor:
        """Actions of the loop."""
        self.guide.write(guide)
        self.stage(noise, state)
        self.loop.launch()
        torch.cuda.synchronize()
        return self.loop.actions.clone()

    def stage(self, noise: Tensor, state: Tensor) -> None:
        """Write the loop's inputs and wait."""
        self.loop.actions.copy_(noise)
        if self.loop.state_token is not None:
            self.loop.state_token.copy_(self.model.state_proj(state))
        torch.cuda.synchronize()

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device='cuda')

    def _caches(self, dtype: torch.dtype) -> list[Cache]:
        length = int(self.prefix.length)

        def valid(buffer: Tensor, layer: int) -> Tensor:
            return buffer[layer, :length].to(dtype)[None, None]

        layers = range(len(self.prefix.keys))
        return [(valid(self.prefix.keys, i), valid(self.prefix.values, i)) for i in layers]

    def _calibrate(self, observations: int = 4) -> Tensor:
        with ExpertRanges(self.model.expert) as ranges:
            for _ in range(observations):
                self.expected(*self.observe(CALIBRATION_LENGTH))
        return activation_scales(ranges.largest)


def exact_loop(
    trial: ExpertTrial, fused: bool = True, stamps: Tensor | None = None, form: str | None = None
) -> ExactDenoise:
    """The loop of exact guidance on the trial's weights, behind a copy of its prefix as it is now.

    fused: its forward pass is that of the trial's loop, not the plain one in bf16. stamps: of its way back,
    as of `ExpertLoop`. form: of the way back, 'bf16' or 'fp8'; by default what the engine takes.
    """
    library, spec, length = trial.library, trial.spec, trial.prefix.length
    if form is None:
        form = 'fp8' if fused and trial.weights.precision == 'fp8' else 'bf16'
    packed = pack_exact(trial.tensors, spec, fused, form) | pack_flow(trial.tensors, spec)
    longest = trial.prefix.keys.shape[1]
    shape = (spec.expert.layers, round_up(longest + spec.horizon + 1), spec.expert.head_dim)
    keys, values = (torch.zeros(shape, dtype=torch.bfloat16, device=length.device) for _ in range(2))
    for target, source in ((keys, trial.prefix.keys), (values, trial.prefix.values)):
        target[:, : int(length)] = source[:, : int(length)]
    cache, operators = PrefixCache(keys, values, length), Operators(library)
    forward: Forward
    if fused:
        heads = FlowHeads(packed, spec, length.device)
        forward = FusedForward(operators, spec, trial.weights, trial.scales, heads, cache, longest)
    else:
        forward = PlainDenoise(operators, spec, own_weights(packed), {}, cache, keeps=True)
    return ExactDenoise(operators, BackwardOperators(library), forward, packed, cache, stamps)


def small_policy(family: str, shape: TrialShape) -> PolicySpec:
    """Published widths in the expert; vision and language as small as they can be."""
    return PolicySpec(
        family,
        VisionSpec(layers=1, width=144, heads=2, mlp=64),
        GemmaSpec(layers=shape.layers, width=64, mlp=64),
        replace(GEMMA_300M, layers=shape.layers),
        vocab=64,
        horizon=shape.horizon,
        steps=shape.steps,
    )
