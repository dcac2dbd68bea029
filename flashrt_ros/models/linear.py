"""A linear layer that does not crawl in bf16 on an ordinary CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAST_BF16 = torch.backends.cpu.get_cpu_capability() == 'AVX512'
"""Below AVX-512 torch multiplies bf16 matrices without vector units."""


class Linear(nn.Linear):
    """`nn.Linear`; where the CPU has no bf16 arithmetic, it multiplies in fp32 and rounds the result.

    Both ways accumulate in fp32. On one core of an AVX2 CPU this gives 65 instead of 10 GFLOP/s (256 rows,
    2048 x 2048).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == 'cpu' and not FAST_BF16:
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias).bfloat16()
        return super().forward(x)
