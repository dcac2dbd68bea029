"""Products with packed weights: cuBLASLt through torch, or a kernel of ours where one measures faster."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import round_up
from flashrt_ros.engine.calibration.ranges import Ranges
from flashrt_ros.engine.weights.formats import BF16, E4M3, INT8, scale_ratio

ROWS_MULTIPLE = 16
"""cuBLASLt takes E4M3 operands only with row counts that are multiples of 16."""


MOST_PADDING = 112
"""Rows that buffers hold beyond those that mean anything, see FASTER_ROWS."""

FASTER_ROWS: dict[tuple[torch.dtype, int, int], tuple[tuple[int, int, int], ...]] = {
    (torch.float8_e4m3fn, 2048, 16384): ((561, 640, 640), (673, 768, 768)),
    (torch.bfloat16, 2048, 16384): ((561, 672, 672), (673, 768, 768)),
    (torch.bfloat16, 2048, 2048): ((561, 640, 640), (673, 768, 768)),
    (torch.bfloat16, 2560, 2048): ((673, 768, 768),),
}
"""Where cuBLASLt is faster on more rows: (dtype, out, in) -> (first, last, rows to use).

Its choice of kernel jumps with the row count: the down projection in E4M3 takes 48 us on 576 rows and 36 us
on 640. Measured on an H100 with torch 2.11 and CUDA 13.0 (benchmarks/notes.md).
"""


def library_rows(product: Product, rows: int) -> int:
    """The row count to give a library product of `rows` rows; at most MOST_PADDING more."""
    columns, depth = product.weight.shape
    hopper = product.weight.is_cuda and torch.cuda.get_device_capability(product.weight.device) == (9, 0)
    for first, last, better in FASTER_ROWS.get((product.dtype, columns, depth), ()) if hopper else ():
        if first <= rows <= last:
            return better
    return round_up(rows, ROWS_MULTIPLE) if product.narrow else rows


class Product:
    """out = x @ weight.T in bf16, unscaled: what follows multiplies by `channel_scale` and adds `bias`.

    x is bf16, or x * inverse_scale in E4M3 or int8 when the weight is; its rows are a multiple of
    ROWS_MULTIPLE.
    scale: what calibration has found for an input in E4M3 (`formats.scale_ratio` turns it into that of int8).
    channel_scale fp32 [out] (input scale times weight scale; None in bf16), bias fp32 [out] or None,
    inverse_scale: what the producer of x multiplies by before rounding (1 in bf16).
    """

    def __init__(
        self, packed: Mapping[str, Tensor], name: str, device: torch.device, scale: float = 1.0
    ) -> None:
        self.name = name
        self.weight = packed[f'{name}.weight'].to(device)
        self.narrow = self.weight.dtype != BF16
        scale = scale * scale_ratio(self.dtype) if self.narrow else 1.0
        bias = packed.get(f'{name}.bias')
        self.bias = None if bias is None else bias.to(device)
        self.channel_scale = packed[f'{name}.channel_scale'].to(device) * scale if self.narrow else None
        self.inverse_scale = 1.0 / scale
        self._one = torch.ones((), device=device)
        self.observer: Ranges | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the input."""
        return self.weight.dtype

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x [rows, in] -> out bf16 [rows, out], launched on the current stream."""
        if self.observer is not None:
            self.observer.note(self.name, x)
        if self.dtype == INT8:
            out.copy_(torch._int_mm(x, self.weight.t()))
        elif self.dtype == E4M3:
            torch._scaled_mm(
                x,
                self.weight.t(),
                self._one,
                self._one,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
                out=out,
            )
        else:
            torch.mm(x, self.weight.t(), out=out)
