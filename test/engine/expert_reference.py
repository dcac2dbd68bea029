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


def kept_tiles(x: Tensor) -> Tensor:
    """[64, columns] as the forward pass keeps what a norm has normalised (kernels/expert_residual.cuh,
    KeptTile): [group of 32 columns][row tile][pair of tiles of 8 columns][half of the rows][8 rows][4 lanes]
    [tile][2 columns]."""
    return x.reshape(4, 2, 8, -1, 2, 2, 4, 2).permute(3, 0, 4, 1, 2, 6, 5, 7).reshape(ROWS, -1)


def from_kept_tiles(kept: Tensor) -> Tensor:
    """The inverse, [64, columns]."""
    return kept.view(-1, 4, 2, 2, 8, 4, 2, 2).permute(1, 3, 4, 0, 2, 6, 5, 7).reshape(ROWS, -1)


def kept_gate_up(values: Tensor) -> Tensor:
    """[64, gates and ups] as they are kept: [block of 32 columns][gates, ups][half of the columns][row tile]
    [8 rows][4 lanes][tile of 8 columns][half of the rows][2 columns]."""
    return values.view(4, 2, 8, 2, -1, 2, 2, 4, 2).permute(4, 3, 5, 0, 2, 7, 6, 1, 8).flatten()


def from_kept_gate_up(kept: Tensor) -> Tensor:
    """The inverse, [64, gates and ups]."""
    return kept.view(-1, 2, 2, 4, 8, 4, 2, 2, 2).permute(3, 7, 4, 1, 0, 2, 6, 5, 8).reshape(ROWS, -1)


def kept_attended(values: Tensor) -> Tensor:
    """[rows, 8 heads * 256] as attention's result is kept: [tile of 16 flat rows][16 steps][8 rows][4 lanes]
    [half of the rows][half of the columns][2 columns]; zero behind the last row."""
    flat = torch.zeros(512, 256, dtype=values.dtype, device=values.device)
    flat[: 8 * len(values)] = values.unflatten(1, (8, 256)).transpose(0, 1).flatten(0, 1)
    return flat.view(32, 2, 8, 16, 2, 4, 2).permute(0, 3, 2, 5, 1, 4, 6).flatten()


def from_kept_attended(kept: Tensor, rows: int) -> Tensor:
    """The inverse, [rows, 2048]."""
    flat = kept.view(32, 16, 8, 4, 2, 2, 2).permute(0, 4, 2, 1, 5, 3, 6).reshape(512, 256)
    return flat[: 8 * rows].view(8, rows, 256).transpose(0, 1).flatten(1)


def kept_log_sums(values: Tensor) -> Tensor:
    """[rows, 8 heads] by flat rows; NaN behind the last."""
    flat = torch.full((512,), float('nan'), device=values.device)
    flat[: values.numel()] = values.T.flatten()
    return flat


def rounded(values: Tensor, precision: str) -> Tensor:
    """What survives the kernels' storage format, in that format."""
    return round_to(values, DTYPES[precision])
