"""The SigLIP tower as a sequence of launches: frames -> one raw projected row per patch.

With library products a layer is eight launches: QKV, attention, output, norm, up, GELU, down, norm. Biases, residuals
and scales travel into whichever of them touches the values next. On Hopper the products are our own: GELU and
residual move into them, and seven launches remain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flashrt_ros.engine.fused_gemm import GELU, RAW, RESIDUAL, FusedProduct, Tiling
from flashrt_ros.engine.gemm import Product
from flashrt_ros.engine.operators import Operators
from flashrt_ros.models.spec import VisionSpec

TILINGS = {
    'qkv': Tiling(warpgroups=2, tile_n=128, stages=4),
    'o': Tiling(warpgroups=1, tile_n=96, stages=6),
    'up': Tiling(warpgroups=2, tile_n=128, stages=3),
    'down': Tiling(warpgroups=2, tile_n=96, stages=6, split=2),
    'projector': Tiling(warpgroups=2, tile_n=96, stages=5),
}
"""The fastest of those measured on an H100 with two views; see benchmarks/notes.md."""


@dataclass(frozen=True)
class Rows:
    """The tower's buffers cut to the rows of the present views. Widths in units of the tower: qkv is three."""

    patches: Tensor
    residual: Tensor
    normed: Tensor
    qkv: Tensor
    attended: Tensor
    up: Tensor
    activated: Tensor
    delta: Tensor
    projected: Tensor


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
        self._buffers = self._allocate(views * spec.tokens, device)
        self._fused = operators.library.gpu.capability == (9, 0) and spec.width % 128 == 0
        self._products: dict[int, list[FusedLayer]] = {}
        self._projectors: dict[int, FusedProduct] = {}

    def output(self, views: int) -> Tensor:
        """Where `run` leaves the raw projected rows, bf16 [views * tokens, language width]."""
        return self._buffers.projected[: views * self.spec.tokens]

    def run(self, frames: Tensor) -> None:
        """Frames of the present views (`buffers.Inputs.frames`) -> `output`."""
        ops, count = self.operators, frames.shape[0] * self.spec.tokens
        rows = Rows(**{name: buffer[:count] for name, buffer in vars(self._buffers).items()})
        ops.patches(frames, self.spec.patch, rows.patches)
        self.patch(rows.patches, rows.delta)
        first = self.layers[0]['qkv']
        ops.norm(rows.residual, rows.normed, first, delta=rows.delta, start=self.start, layer_norm=True)
        if self._fused and not self.observed:
            self._run_fused(rows, count)
        else:
            self._run_library(rows)

    @property
    def observed(self) -> bool:
        """Whether calibration watches the inputs of the products, which only library products show."""
        return self.projector.observer is not None

    def _run_library(self, rows: Rows) -> None:
        ops, spec = self.operators, self.spec
        for i, layer in enumerate(self.layers):
            layer['qkv'](rows.normed, rows.qkv)
            ops.vision_attention(rows.qkv, layer['qkv'], spec.tokens, spec.heads, rows.attended, layer['o'])
            layer['o'](rows.attended, rows.delta)
            self._norm(rows, layer['o'], layer['up'])
            layer['up'](rows.normed, rows.up)
            ops.bias_gelu(rows.up, layer['up'], rows.activated, layer['down'])
            layer['down'](rows.activated, rows.delta)
            self._norm(rows, layer['down'], self._after(i))
        self.projector(rows.normed, rows.projected)

    def _run_fused(self, rows: Rows, count: int) -> None:
        ops, spec = self.operators, self.spec
        if count not in self._products:
            self._products[count] = [FusedLayer(ops, layer, rows) for layer in self.layers]
            self._projectors[count] = FusedProduct(
                ops.library, self.projector, rows.normed, rows.projected, RAW, TILINGS['projector']
            )
        for i, (layer, fused) in enumerate(zip(self.layers, self._products[count], strict=True)):
            fused.qkv()
            ops.vision_attention(rows.qkv, layer['qkv'], spec.tokens, spec.heads, rows.attended, layer['o'])
            fused.o()
            ops.norm(rows.residual, rows.normed, layer['up'], layer_norm=True)
            fused.up()
            fused.down()
            ops.norm(rows.residual, rows.normed, self._after(i), layer_norm=True)
        self._projectors[count]()

    def _norm(self, rows: Rows, preceding: Product, following: Product) -> None:
        self.operators.norm(
            rows.residual, rows.normed, following, delta=rows.delta, preceding=preceding, layer_norm=True
        )

    def _after(self, index: int) -> Product:
        """What takes the output of layer `index`."""
        return self.layers[index + 1]['qkv'] if index + 1 < len(self.layers) else self.projector

    def _allocate(self, rows: int, device: torch.device) -> Rows:
        width, mlp, narrow = self.spec.width, self.spec.mlp, self.layers[0]['qkv'].dtype

        def buffer(columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(rows, columns, dtype=dtype, device=device)

        return Rows(
            patches=buffer(self.patch.weight.shape[1]),
            residual=buffer(width, torch.float32),
            normed=buffer(width, narrow),
            qkv=buffer(3 * width),
            attended=buffer(width, narrow),
            up=buffer(mlp),
            activated=buffer(mlp, narrow),
            delta=buffer(width),
            projected=buffer(self.projector.weight.shape[0]),
        )


class FusedLayer:
    """The four products of one layer on fixed rows, with GELU and residual in their epilogues."""

    def __init__(self, operators: Operators, layer: Mapping[str, Product], rows: Rows) -> None:
        library = operators.library
        self.qkv = FusedProduct(library, layer['qkv'], rows.normed, rows.qkv, RAW, TILINGS['qkv'])
        self.o = FusedProduct(library, layer['o'], rows.attended, rows.residual, RESIDUAL, TILINGS['o'])
        self.up = FusedProduct(
            library, layer['up'], rows.normed, rows.activated, GELU, TILINGS['up'], layer['down']
        )
        self.down = FusedProduct(
            library, layer['down'], rows.activated, rows.residual, RESIDUAL, TILINGS['down']
        )
