"""Activations in the order of the action expert's kernels (kernels/expert_common.cuh), plainly."""

from __future__ import annotations

import torch
from torch import Tensor

from flashrt_ros.engine.expert.layout import step_order
from flashrt_ros.engine.weights.formats import round_to

DTYPES = {'bf16': torch.bfloat16, 'fp8': torch.float8_e4m3fn, 'int8': torch.int8}
ROWS = 64


def to_fragments(values: Tensor, order: str) -> Tensor:
    """[rows (a multiple of 16), K] -> bytes."""
    step = 32 // values.element_size()
    raw = values.view(torch.uint8 if values.element_size() == 1 else torch.int16)
    raw = raw.view(len(raw) // 16, 2, 8, -1, step)[..., step_order(order, step).to(raw.device)]
    raw = raw.view(*raw.shape[:4], 2, 4, step // 8)
    return raw.permute(3, 0, 2, 5, 4, 1, 6).contiguous().view(torch.uint8).flatten()


def from_fragments(fragments: Tensor, dtype: torch.dtype, depth: int, order: str) -> Tensor:
    """The inverse, [64, depth] in fp32."""
    step = 32 // dtype.itemsize
    raw = fragments.view(torch.uint8 if dtype.itemsize == 1 else torch.int16)
    raw = raw.view(depth // step, ROWS // 16, 8, 4, 2, 2, step // 8).permute(1, 5, 2, 0, 4, 3, 6)
    raw = raw.reshape(ROWS, depth // step, step)
    out = torch.empty_like(raw)
    out[..., step_order(order, step).to(raw.device)] = raw
    return out.reshape(ROWS, depth).view(dtype).float()


def flat_rows(fragments: Tensor, rows: int) -> Tensor:
    """bf16 [8 heads, rows, 256] of fragments of flat rows head * rows + row: [row tile][16 steps][lane][16
    bytes]."""
    raw = fragments.view(32, 16, 8, 4, 2, 2, 2).permute(0, 5, 2, 1, 4, 3, 6).reshape(512, 256)
    return raw[: 8 * rows].view(8, rows, 256)


def flat_fragments(values: Tensor) -> Tensor:
    """The inverse; NaN behind the last row."""
    flat = torch.full((512, 256), float('nan'), dtype=torch.bfloat16, device=values.device)
    flat[: values.shape[0] * values.shape[1]] = values.reshape(-1, 256)
    return flat.view(32, 2, 8, 16, 2, 4, 2).permute(0, 3, 2, 5, 4, 1, 6).contiguous()


def rounded(values: Tensor, precision: str) -> Tensor:
    """What survives the kernels' storage format, in that format."""
    return round_to(values, DTYPES[precision])
