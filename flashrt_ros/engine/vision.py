"""The SigLIP tower as a sequence of launches: frames -> one raw projected row per patch.

A layer is eight launches: norm, QKV, attention, output, norm, up, GELU, down. Biases, residuals and scales travel
into whichever of them touches the values next.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.gemm import Product
from flashrt_ros.engine.operators import Operators
from flashrt_ros.models.spec import VisionSpec


class VisionTower:
    """Runs `views` images at once. Buffers are allocated for the most views and used from the front."""

    def __init__(
        self,
        operators: Operators,
        spec: VisionSpec,
        packed: Mapping[str, Tensor],
        scales: Mapping[str, float],
        views: int,
    ) -> None:
        self.spec, self.operators = spec, operators
        device = operators.library.gpu.device

        def product(name: str) -> Product:
            return Product(packed, f'vision.{name}', device, scales.get(f'vision.{name}', 1.0))

        self.patch = product('patch')
        self.start = packed['vision.start'].to(device)
        self.layers = [
            {part: product(f'{i}.{part}') for part in ('qkv', 'o', 'up', 'down')} for i in range(spec.layers)
        ]
        self.projector = product('projector')
        rows, width = views * spec.tokens, spec.width
        narrow = self.layers[0]['qkv'].dtype

        def buffer(columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(rows, columns, dtype=dtype, device=device)

        self._patches = buffer(self.patch.weight.shape[1])
        self._residual = buffer(width, torch.float32)
        self._normed, self._attended = buffer(width, narrow), buffer(width, narrow)
        self._qkv, self._up, self._activated = buffer(3 * width), buffer(spec.mlp), buffer(spec.mlp, narrow)
        self._delta = buffer(width)
        self._projected = buffer(self.projector.weight.shape[0])

    def output(self, views: int) -> Tensor:
        """Where `run` leaves the raw projected rows, bf16 [views * tokens, language width]."""
        return self._projected[: views * self.spec.tokens]

    def run(self, frames: Tensor) -> None:
        """Frames of the present views (`buffers.Inputs.frames`) -> `output`."""
        views, ops = frames.shape[0], self.operators
        rows = views * self.spec.tokens
        residual, normed, delta = self._residual[:rows], self._normed[:rows], self._delta[:rows]
        ops.patches(frames, self.spec.patch, self._patches[:rows])
        self.patch(self._patches[:rows], delta)
        first = self.layers[0]['qkv']
        ops.norm(residual, normed, first, delta=delta, start=self.start, layer_norm=True)
        for i, layer in enumerate(self.layers):
            following = self.layers[i + 1]['qkv'] if i + 1 < len(self.layers) else self.projector
            self._run_layer(layer, following, rows)
        self.projector(normed, self.output(views))

    def _run_layer(self, layer: dict[str, Product], following: Product, rows: int) -> None:
        ops, spec = self.operators, self.spec
        residual, normed, delta = self._residual[:rows], self._normed[:rows], self._delta[:rows]
        qkv, attended, up, activated = (
            b[:rows] for b in (self._qkv, self._attended, self._up, self._activated)
        )
        layer['qkv'](normed, qkv)
        ops.vision_attention(qkv, layer['qkv'], spec.tokens, spec.heads, attended, layer['o'])
        layer['o'](attended, delta)
        ops.norm(residual, normed, layer['up'], delta=delta, preceding=layer['o'], layer_norm=True)
        layer['up'](normed, up)
        ops.bias_gelu(up, layer['up'], activated, layer['down'])
        layer['down'](activated, delta)
        ops.norm(residual, normed, following, delta=delta, preceding=layer['down'], layer_norm=True)
