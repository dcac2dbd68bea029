"""How the action expert's kernels want their weights: slices of columns, steps of K, core matrices.

kernels/expert_common.cuh describes the layout; this module produces it. A block of a kernel owns one slice of
output columns, contiguous in memory, so that bulk copies fetch it. Words: a *step* is 32 bytes of K (16
bf16, 32 e4m3 or 32 int8 values); the *order* says which K value sits where inside a step, and follows from
who writes the activations.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Order = Literal['linear', 'accumulator']

CORE_ROWS = 8
"""Columns of a core matrix; it holds 16 bytes of K of each."""


def step_order(order: Order, step: int) -> Tensor:
    """K values of one step in the order of wgmma's operands, int64 [step].

    linear: a lane quarter holds consecutive values. accumulator: it holds columns 2c and 2c + 1 of each
    tile of 8, as in wgmma's accumulator (PTX ISA, register fragments of wgmma.mma_async).
    """
    position = torch.arange(step)
    half, rest = position // (step // 2), position % (step // 2)
    quarter, inner = rest // (step // 8), rest % (step // 8)
    if order == 'linear':
        return quarter * (step // 4) + half * (step // 8) + inner
    return half * (step // 2) + inner // 2 * 8 + quarter * 2 + inner % 2


def pack_slices(weight: Tensor, columns: int, order: Order) -> Tensor:
    """Weight [N, K] in bf16, e4m3 or int8, rows in block order -> bytes uint8 [N / columns, slice bytes]."""
    raw = weight.view(torch.uint8) if weight.element_size() == 1 else weight.view(torch.int16)
    step = 32 // weight.element_size()
    total, depth = weight.shape
    split = raw.reshape(total // columns, columns // CORE_ROWS, CORE_ROWS, depth // step, step)
    split = split[..., step_order(order, step).to(weight.device)].unflatten(-1, (2, step // 2))
    return split.permute(0, 3, 4, 1, 2, 5).contiguous().flatten(1).view(torch.uint8)


def rotary_columns(heads: int, head_dim: int) -> Tensor:
    """Rows of the stacked q, k, v weight in the block order of expert_qkv.cuh, int64 [heads * head_dim].

    Blocks of 32: 8 dimensions, their rotary partners half a head further, the next 8, and theirs.
    """
    half = torch.arange(head_dim).view(2, head_dim // 16, 8)
    one = half.transpose(0, 1).reshape(-1)
    return (torch.arange(heads)[:, None] * head_dim + one).flatten()


def interleave_tiles(gate: Tensor, up: Tensor) -> Tensor:
    """Gate and up weights [M, ...] -> [2 M, ...]: 8 gates, the 8 ups that belong to them, and so on."""
    return torch.stack([gate.unflatten(0, (-1, 8)), up.unflatten(0, (-1, 8))], 1).flatten(0, 2)
