"""Weights of the way back in the order in which kernels/back_product_sm90.cu multiplies them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BOX = 64
E4M3_MAX = 448.0


@dataclass(frozen=True)
class BackWeight:
    """A product's weight [depth, columns], as it is stored for the forward product ([out, in]), in boxes.

    boxes: uint8, 64 x 64 values each, those of a column of boxes one behind the other. scale: fp32 [columns]
    makes values of e4m3; None for bf16.
    """

    boxes: Tensor
    scale: Tensor | None
    depth: int
    columns: int


def pack_back(weight: Tensor, eight_bits: bool) -> BackWeight:
    """weight: [depth, columns], multiples of 64, in any floating dtype; on its own device."""
    depth, columns = weight.shape
    if not eight_bits:
        return BackWeight(_fragments(weight.bfloat16()), None, depth, columns)
    values = weight.float()
    scale = (values.abs().amax(0) / E4M3_MAX).clamp_min(torch.finfo(torch.float32).tiny)
    narrow = (values / scale).to(torch.float8_e4m3fn).view(torch.uint8)
    return BackWeight(_narrow_fragments(narrow), scale, depth, columns)


def _fragments(weight: Tensor) -> Tensor:
    """A warp has 16 columns; a lane (g, t) has of those g and g + 8, of every 16 of K 2t, 2t + 1, and 8 more.

    Operand a of m64k16 is the transposed weight; its four registers begin at (g, 2t), (g + 8, 2t),
    (g, 2t + 8) and (g + 8, 2t + 8).
    """
    depth, columns = weight.shape
    # of K: box, chunk, upper half, t, one of two; of columns: box, warp, lower eight, g
    parts = weight.reshape(depth // BOX, 4, 2, 4, 2, columns // BOX, 4, 2, 8)
    return parts.permute(5, 0, 6, 1, 8, 3, 2, 7, 4).contiguous().view(torch.uint8).flatten()


def _narrow_fragments(weight: Tensor) -> Tensor:
    """Likewise, two chunks of K in 16 bytes; g is in the odd bytes of a word, g + 8 in the even ones."""
    depth, columns = weight.shape
    # of K: box, pair of chunks, chunk, upper half, t, one of two; of columns: box, warp, lower eight, g
    parts = weight.reshape(depth // BOX, 2, 2, 2, 4, 2, columns // BOX, 4, 2, 8).flip(8)
    return parts.permute(6, 0, 7, 1, 9, 4, 2, 3, 5, 8).contiguous().flatten()
