"""How the prefill's wide Hopper products want the rows of their weights.

In the accumulators of wgmma a thread holds two neighbouring columns of every tile of eight, columns 2q and
2q + 1 with q its place among four lanes (PTX ISA, wgmma.mma_async). Rows of a weight are columns of the
result, so an order of rows decides what a thread finishes: here, eight neighbours of a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.weights.packing import Packed, pack_language
from flashrt_ros.models.spec import PolicySpec


def lane_order(columns: int) -> Tensor:
    """Columns in the order of accumulator tiles, int64 [columns]: a lane holds eight neighbouring ones.

    columns is a multiple of 32. Column 32 * b + 8 * q + 2 * t + e is element 2 * q + e of tile t of block b.
    """
    return torch.arange(columns).view(-1, 4, 4, 2).transpose(1, 2).flatten()


def gated_order(width: int) -> Tensor:
    """Rows of stacked gate and up weights [2 * width, K] for gated_gemm_sm90.cu, int64 [2 * width].

    Tiles of eight gates and of their eight ups alternate, in `lane_order`. width is a multiple of 32.
    """
    gates = lane_order(width).view(-1, 8)
    return torch.stack([gates, gates + width], 1).flatten()


def pack_wide_language(
    tensors: Mapping[str, Tensor], spec: PolicySpec, precision: str, uneven: frozenset[str] = frozenset()
) -> Packed:
    """`packing.pack_language` with `gated` in place of `gate_up` and `split_down` in place of `down`."""
    packed, language = pack_language(tensors, spec, precision, uneven), spec.language
    for i in range(language.layers - 1):
        gates, lanes = gated_order(language.mlp), lane_order(language.width)
        _reorder(packed, f'language.{i}.gate_up', f'language.{i}.gated', gates, scaled=True)
        _reorder(packed, f'language.{i}.down', f'language.{i}.split_down', lanes, scaled=False)
    return packed


def _reorder(packed: Packed, name: str, wide: str, order: Tensor, scaled: bool) -> None:
    """Rename a product and put its rows in an order; scaled: the channel scales too."""
    weight = packed.pop(f'{name}.weight')
    raw = weight.view(torch.uint8 if weight.element_size() == 1 else torch.int16)
    order = order.to(weight.device)
    packed[f'{wide}.weight'] = raw[order].view(weight.dtype)
    if f'{name}.channel_scale' in packed:
        scale = packed.pop(f'{name}.channel_scale')
        packed[f'{wide}.channel_scale'] = scale[order] if scaled else scale
