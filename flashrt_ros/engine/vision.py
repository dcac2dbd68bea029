"""The SigLIP tower as a sequence of launches: frames -> one raw projected row per patch.

With library products a layer is eight launches: QKV, attention, output, norm, up, GELU, down, norm. Biases,
residuals and scales travel into whichever of them touches the values next. A product of our own
(`fused_gemm`, Hopper) takes GELU or the residual into its epilogue instead.
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


@dataclass(frozen=True)
class Rows:
    """The tower's buffers cut to the rows of the present views. Widths in units of the tower: qkv is
    three."""

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
    """Runs `views` images at once. Buffers are allocated for the most views and used from the front.

    tilings: the products that shall be ours, Hopper only. None is by default: in the tower the library is
    faster with all of them (benchmarks/notes.md).
    """

    def __init__(
        self,
        operators: Operators,
        spec: VisionSpec,
        packed: Mapping[str, Tensor],
        scales: Mapping[str, float],
        views: int,
        tilings: Mapping[str, Tiling] | None = None,
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
        self._tilings = tilings or {}
        self._fused: dict[int, list[dict[str, FusedProduct]]] = {}

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
        for i, fused in enumerate(self._fused_layers(rows, count)):
            self._run_layer(rows, i, fused)
        self.projector(rows.normed, rows.projected)

    def _run_layer(self, rows: Rows, index: int, fused: Mapping[str, FusedProduct]) -> None:
        """One layer; `fused` has the products of ours, the others are the library's."""
        ops, spec, layer = self.operators, self.spec, self.layers[index]
        if 'qkv' in fused:
            fused['qkv']()
        else:
            layer['qkv'](rows.normed, rows.qkv)
        ops.vision_attention(rows.qkv, layer['qkv'], spec.tokens, spec.heads, rows.attended, layer['o'])
        self._add_and_norm(rows, layer, 'o', fused.get('o'), layer['up'])
        if 'up' in fused:
            fused['up']()
        else:
            layer['up'](rows.normed, rows.up)
            ops.bias_gelu(rows.up, layer['up'], rows.activated, layer['down'])
        self._add_and_norm(rows, layer, 'down', fused.get('down'), self._after(index))

    def _add_and_norm(
        self,
        rows: Rows,
        layer: Mapping[str, Product],
        part: str,
        fused: FusedProduct | None,
        following: Product,
    ) -> None:
        """Add a product to the residual, then norm it for `following`."""
        if fused is not None:
            fused()
            self.operators.norm(rows.residual, rows.normed, following, layer_norm=True)
        else:
            layer[part](rows.attended if part == 'o' else rows.activated, rows.delta)
            self.operators.norm(
                rows.residual,
                rows.normed,
                following,
                delta=rows.delta,
                preceding=layer[part],
                layer_norm=True,
            )

    def _fused_layers(self, rows: Rows, count: int) -> list[dict[str, FusedProduct]]:
        """The fused products of each layer on these rows; none while calibration watches the inputs."""
        if self.projector.observer is not None:
            return [{} for _ in self.layers]
        if count not in self._fused:
            self._fused[count] = [self._fuse(layer, rows) for layer in self.layers]
        return self._fused[count]

    def _fuse(self, layer: Mapping[str, Product], rows: Rows) -> dict[str, FusedProduct]:
        library = self.operators.library
        operands = {
            'qkv': (rows.normed, rows.qkv, RAW, None),
            'o': (rows.attended, rows.residual, RESIDUAL, None),
            'up': (rows.normed, rows.activated, GELU, layer['down']),
            'down': (rows.activated, rows.residual, RESIDUAL, None),
        }
        return {
            name: FusedProduct(library, layer[name], x, out, epilogue, tiling, following)
            for name, tiling in self._tilings.items()
            for x, out, epilogue, following in [operands[name]]
        }

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
