"""The SigLIP tower as a sequence of launches: patches -> one raw projected row for each.

A layer is seven launches where the products are ours (`fused_gemm`, Hopper): QKV, attention, output, norm, up
with GELU, down, norm. The library's products leave GELU to a kernel of its own. Biases, residuals and scales
travel into whichever kernel touches the values next; output and down leave sums over parts of K, which the
norm adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.operators.fused_gemm import FusedProduct, Tiling
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.towers.vision_tilings import AHEAD, EPILOGUES, Tilings, sum_parts, tower_tilings
from flashrt_ros.engine.weights.formats import as_input
from flashrt_ros.models.spec import VisionSpec

Steps = dict[str, Callable[[], None]]
"""What launches the products of a layer: qkv, o, up (with GELU) and down."""


@dataclass(frozen=True)
class Rows:
    """The tower's buffers on the rows of the present views. Widths in units of the tower: qkv is three.

    sums bf16 [parts, rows, width]: what the patch embedding, output and down leave, in up to `parts` parts.
    """

    patches: Tensor
    residual: Tensor
    normed: Tensor
    qkv: Tensor
    attended: Tensor
    up: Tensor
    activated: Tensor
    sums: Tensor
    projected: Tensor


class VisionTower:
    """Runs `views` images at once. Buffers are allocated for the most views and used from the front.

    tilings: number of rows -> products that shall be ours and how; None chooses by GPU and model.
    """

    def __init__(
        self,
        operators: Operators,
        spec: VisionSpec,
        packed: Mapping[str, Tensor],
        scales: Mapping[str, float],
        views: int,
        tilings: Tilings | None = None,
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
        if tilings is None:
            tilings = tower_tilings(operators.library.gpu, spec, self.projector.narrow)
        self._tilings = tilings
        self._buffers = self._allocate(views * spec.tokens, device)
        self._steps: dict[int, list[Steps]] = {}

    def output(self, views: int) -> Tensor:
        """Where `run` leaves the raw projected rows, bf16 [views * tokens, language width]."""
        return self._buffers.projected[: views * self.spec.tokens]

    def patch_rows(self, views: int) -> Tensor:
        """Where `see` finds the patches, bf16 [views * tokens, columns] as in kernels/embedding.cu."""
        return self._buffers.patches[: views * self.spec.tokens]

    def run(self, images: Tensor) -> None:
        """Images fp32 [views, 3, size, size] in [-1, 1] -> `output`."""
        views = images.shape[0]
        self.operators.patches(images, self.spec.patch, self.patch_rows(views))
        self.see(views)

    def see(self, views: int) -> None:
        """`patch_rows` of the present views -> `output`."""
        ops, count = self.operators, views * self.spec.tokens
        rows, tilings = self._cut(count), self._present_tilings(count)
        self.patch(rows.patches, rows.sums[0])
        first = self.layers[0]['qkv']
        normed = as_input(rows.normed, first.dtype)
        ops.layer_norm(rows.residual, normed, first, rows.sums[:1], start=self.start)
        for i, steps in enumerate(self._layer_steps(rows, tilings)):
            self._run_layer(rows, i, steps, tilings)
        ops.multiply(self.projector, as_input(rows.normed, self.projector.dtype), rows.projected)

    def _run_layer(self, rows: Rows, index: int, steps: Steps, tilings: Mapping[str, Tiling]) -> None:
        ops, spec, layer = self.operators, self.spec, self.layers[index]

        def norm(part: str, following: Product) -> None:
            sums = rows.sums[: tilings[part].parts if part in tilings else 1]
            normed = as_input(rows.normed, following.dtype)
            ops.layer_norm(rows.residual, normed, following, sums, preceding=layer[part])

        steps['qkv']()
        attended = as_input(rows.attended, layer['o'].dtype)
        ops.vision_attention(rows.qkv, layer['qkv'], spec.tokens, spec.heads, attended, layer['o'])
        steps['o']()
        norm('o', layer['up'])
        steps['up']()
        steps['down']()
        following = self._product(index, 'next qkv')
        norm('down', self.projector if following is None else following)

    def _layer_steps(self, rows: Rows, tilings: Mapping[str, Tiling]) -> list[Steps]:
        """What launches each layer's products on these rows; kept, because buffers stay where they are."""
        if self._calibrating:
            return [self._library_steps(layer, rows) for layer in self.layers]
        count = rows.residual.shape[0]
        if count not in self._steps:
            self._steps[count] = [
                self._library_steps(layer, rows) | self._fused_steps(i, rows, tilings)
                for i, layer in enumerate(self.layers)
            ]
        return self._steps[count]

    def _library_steps(self, layer: Mapping[str, Product], rows: Rows) -> Steps:
        multiply, inputs = self.operators.multiply, self._inputs(layer, rows)

        def up() -> None:
            multiply(layer['up'], inputs['up'], rows.up)
            self.operators.bias_gelu(rows.up, layer['up'], inputs['down'], layer['down'])

        return {
            'qkv': partial(multiply, layer['qkv'], inputs['qkv'], rows.qkv),
            'o': partial(multiply, layer['o'], inputs['o'], rows.sums[0]),
            'up': up,
            'down': partial(multiply, layer['down'], inputs['down'], rows.sums[0]),
        }

    @staticmethod
    def _inputs(layer: Mapping[str, Product], rows: Rows) -> dict[str, Tensor]:
        buffers = {'qkv': rows.normed, 'o': rows.attended, 'up': rows.normed, 'down': rows.activated}
        return {part: as_input(buffer, layer[part].dtype) for part, buffer in buffers.items()}

    def _fused_steps(self, index: int, rows: Rows, tilings: Mapping[str, Tiling]) -> Steps:
        layer, steps = self.layers[index], Steps()
        inputs = self._inputs(layer, rows)
        outs = {'qkv': rows.qkv, 'o': rows.sums, 'up': inputs['down'], 'down': rows.sums}
        for part, tiling in tilings.items():
            x, out = inputs[part], outs[part]
            steps[part] = FusedProduct(
                self.operators.library,
                layer[part],
                x,
                out[: tiling.parts] if out is rows.sums else out,
                EPILOGUES[part],
                tiling,
                following=layer['down'] if part == 'up' else None,
                ahead=[p for name in AHEAD.get(part, ()) if (p := self._product(index, name))],
            )
        return steps

    def _product(self, index: int, name: str) -> Product | None:
        """A product of layer `index`, or of the next ('next qkv') if there is one."""
        index += name.startswith('next ')
        return self.layers[index][name.removeprefix('next ')] if index < len(self.layers) else None

    @property
    def _calibrating(self) -> bool:
        """Whether somebody watches the inputs of products, which only the library's let them do."""
        return self.projector.observer is not None

    def _present_tilings(self, count: int) -> Mapping[str, Tiling]:
        return {} if self._calibrating else self._tilings.get(count, {})

    def _cut(self, count: int) -> Rows:
        """The buffers' first `count` rows; sums stay contiguous."""
        buffers = {name: buffer[:count] for name, buffer in vars(self._buffers).items() if name != 'sums'}
        parts, _, width = self._buffers.sums.shape
        sums = self._buffers.sums.flatten()[: parts * count * width].view(parts, count, width)
        return Rows(**buffers, sums=sums)

    def _allocate(self, rows: int, device: torch.device) -> Rows:
        width, mlp, narrow = self.spec.width, self.spec.mlp, self.layers[0]['qkv'].dtype
        most_parts = max(sum_parts(self._tilings))

        def buffer(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return Rows(
            patches=buffer(rows, self.patch.weight.shape[1]),
            residual=buffer(rows, width, dtype=torch.float32),
            normed=buffer(rows, width, dtype=narrow),
            qkv=buffer(rows, 3 * width),
            attended=buffer(rows, width, dtype=narrow),
            up=buffer(rows, mlp),
            activated=buffer(rows, mlp, dtype=narrow),
            sums=buffer(most_parts, rows, width),
            projected=buffer(rows, self.projector.weight.shape[0]),
        )
