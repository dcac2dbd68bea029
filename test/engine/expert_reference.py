"""Plain counterparts of the action expert's kernels and buffers: fragments in and out, and one expert without the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flashrt_ros.engine.expert import ExpertLoop, ExpertShape, Prefix
from flashrt_ros.engine.expert_layout import step_order
from flashrt_ros.engine.expert_ranges import ExpertRanges, activation_scales
from flashrt_ros.engine.expert_weights import pack_expert
from flashrt_ros.models.pi import load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import GEMMA_300M, GemmaSpec, PolicySpec, VisionSpec

DTYPES = {'bf16': torch.bfloat16, 'fp8': torch.float8_e4m3fn}
ROWS = 64


def to_fragments(values: Tensor, order: str) -> Tensor:
    """[rows (a multiple of 16), K] -> bytes in the order of kernels/expert_common.cuh."""
    step = 32 // values.element_size()
    raw = values.view(torch.uint8 if values.element_size() == 1 else torch.int16)
    raw = raw.view(len(raw) // 16, 2, 8, -1, step)[..., step_order(order, step).to(raw.device)]
    raw = raw.view(*raw.shape[:4], 2, 4, step // 8)
    return raw.permute(3, 0, 2, 5, 4, 1, 6).contiguous().view(torch.uint8).flatten()


def from_fragments(fragments: Tensor, dtype: torch.dtype, depth: int, order: str, rows: int = ROWS) -> Tensor:
    """The inverse, [rows, depth] in fp32."""
    step = 32 // dtype.itemsize
    raw = fragments.view(torch.uint8 if dtype.itemsize == 1 else torch.int16)
    raw = raw.view(depth // step, rows // 16, 8, 4, 2, 2, step // 8).permute(1, 5, 2, 0, 4, 3, 6)
    raw = raw.reshape(rows, depth // step, step)
    out = torch.empty_like(raw)
    out[..., step_order(order, step).to(raw.device)] = raw
    return out.reshape(rows, depth).view(dtype).float()


def rounded(values: Tensor, precision: str) -> Tensor:
    """What survives the kernels' storage format, in that format."""
    if precision == 'fp8':
        values = values.clamp(-448, 448)
    return values.to(DTYPES[precision])


def small_policy(family: str, layers: int, horizon: int, steps: int) -> PolicySpec:
    """A policy whose expert has the published widths, and whose other towers cost next to nothing."""
    return PolicySpec(
        family,
        VisionSpec(layers=1, width=144, heads=2, mlp=64),
        GemmaSpec(layers=layers, width=64, mlp=64),
        replace(GEMMA_300M, layers=layers),
        vocab=64,
        horizon=horizon,
        steps=steps,
    )


class LoopCase:
    """A random expert behind a random prefix: the fused loop, and the plain model in fp32 or bf16."""

    def __init__(
        self, library, family, precision, layers=2, horizon=50, steps=3, capacity=712, lookahead=0, seed=0
    ):
        self.spec = small_policy(family, layers, horizon, steps)
        self.tensors = random_tensors(self.spec, seed, torch.float32, 'cuda')
        self.model = load_model(self.spec, self.tensors, torch.float32)
        self.generator = torch.Generator('cuda').manual_seed(seed)
        shape = (layers, capacity, 256)
        self.prefix = Prefix(
            *(torch.full(shape, float('nan'), dtype=torch.bfloat16, device='cuda') for _ in range(2)),
            torch.zeros(1, dtype=torch.int32, device='cuda'),
        )
        with torch.inference_mode():
            self.table = self.model.flow_table(steps)
            weights = pack_expert(self.spec, self.tensors, self.table, precision)
            scales = self.calibrate() if precision == 'fp8' else None
        self.loop = ExpertLoop(
            library, weights, scales, ExpertShape(horizon, capacity, lookahead), self.prefix
        )

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device='cuda')

    def observe(self, length: int) -> tuple[Tensor, Tensor]:
        """Fill the prefix with fresh values; returns (noise [H, 32], state [32])."""
        for buffer in (self.prefix.keys, self.prefix.values):
            buffer[:, :length] = self.draw(len(buffer), length, 256).bfloat16()
        self.prefix.length.fill_(length)
        return self.draw(self.spec.horizon, 32), self.draw(32)

    @torch.inference_mode()
    def expected(self, noise: Tensor, state: Tensor, model=None) -> Tensor:
        model = model or self.model
        length = int(self.prefix.length)
        caches = [
            tuple(
                buffer[i, :length].to(model.dtype)[None, None]
                for buffer in (self.prefix.keys, self.prefix.values)
            )
            for i in range(self.spec.expert.layers)
        ]
        if self.spec.has_state_token:
            token = model.state_proj(state[None])[:, None].to(model.dtype)
            caches = model.expert(token, model._rotary(caches, 1), caches)[1]
        return model.denoise(noise[None], caches, self.table)[0]

    @torch.inference_mode()
    def found(self, noise: Tensor, state: Tensor) -> Tensor:
        self.stage(noise, state)
        self.loop.launch()
        torch.cuda.synchronize()
        return self.loop.actions.clone()

    def stage(self, noise: Tensor, state: Tensor) -> None:
        self.loop.actions.copy_(noise)
        if self.loop.state_token is not None:
            self.loop.state_token.copy_(self.model.state_proj(state))
        torch.cuda.synchronize()

    def calibrate(self, observations: int = 4) -> Tensor:
        with ExpertRanges(self.model.expert) as ranges:
            for _ in range(observations):
                self.expected(*self.observe(562))
        return activation_scales(ranges.largest)
