"""Number formats of products: what their weights and their inputs are rounded to.

'fp8' is the user's word for 8 bits. Which 8 bits a product takes follows from what enters it:

| tower    | qkv, kv | o    | up, gate and up | down | projector |
| -------- | ------- | ---- | --------------- | ---- | --------- |
| pi0.5    | e4m3    | e4m3 | e4m3            | e4m3 | e4m3      |
| pi0:     |         |      |                 |      |           |
| vision   | int8    | int8 | int8            | int8 | int8      |
| language | int8    | int8 | int8            | e4m3 |           |
| expert   | int8    | int8 | int8            | e4m3 |           |

E4M3 rounds every value to 2.6 % rms at any scale. Integers of 8 bits round to a step: values as evenly spread
as those behind a norm to 0.9 to 1.3 % of their rms, the product of GELU and up to as much as E4M3. pi0 has no
gates that damp a sublayer's error, so E4M3 in its towers takes its actions to a cosine of 0.985 against the
plain model (benchmarks/notes.md). Outliers of trained weights make steps coarse where they leave E4M3 as it
is; nothing here has been measured on them.

Integers need Hopper and the published sizes. Elsewhere pi0 in fp8 has E4M3 in vision and language, and its
expert in bf16. They know no NaN: one in a row becomes zeros in what a product reads, and stays in the
residual.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashrt_ros.models.spec import PolicySpec

E4M3, INT8, BF16 = torch.float8_e4m3fn, torch.int8, torch.bfloat16

LARGEST = {E4M3: 448.0, INT8: 127.0}
"""Largest finite value of float8_e4m3fn, and of integers on both sides of zero."""

HEADROOM = {E4M3: 2.0, INT8: 1.2}
"""Room above the largest value seen, for observations that were not. It costs E4M3 no precision (it has 15
octaves of normal values), integers as much as it is."""

WITHOUT_INTEGERS = ('language.down', 'expert.down')
"""Products of a tower in 'int8' that take E4M3 all the same."""

TOWERS = ('vision', 'language', 'expert')


def tower_format(spec: PolicySpec, precision: str, tower: str, integers: bool) -> str:
    """'bf16', 'fp8' or 'int8' for one of TOWERS of a policy of this precision.

    integers: whether there are kernels for them.
    """
    if precision == 'bf16' or spec.family != 'pi0':
        return precision
    if integers:
        return 'int8'
    return 'bf16' if tower == 'expert' else 'fp8'


def product_dtype(name: str, tower_format: str) -> torch.dtype:
    """Of weights and input of product `name`, such as 'language.3.down', in a tower of this format."""
    if tower_format == 'bf16':
        return BF16
    words = name.split('.')
    kept = f'{words[0]}.{words[-1]}' in WITHOUT_INTEGERS
    return E4M3 if tower_format == 'fp8' or kept else INT8


def constants(dtype: torch.dtype) -> dict[str, int]:
    """What kernels are compiled with that read or write this type (kernels/common.cuh)."""
    return {'FP8': int(dtype != BF16)} | ({'INT8': 1} if dtype == INT8 else {})


def scale_ratio(dtype: torch.dtype) -> float:
    """The scale of a product's input in this format, over the one that calibration has found for E4M3."""
    return LARGEST[E4M3] / HEADROOM[E4M3] * HEADROOM[dtype] / LARGEST[dtype]


def quantise_rows(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[out, in] -> values of the same shape, and fp32 [out] with weight = values * scale.

    The largest magnitude of a row becomes the largest value. bf16 has scales of one.
    """
    if dtype == BF16:
        return weight.to(dtype).contiguous(), torch.ones(len(weight), device=weight.device)
    scale = weight.float().abs().amax(1).clamp(min=1e-12) / LARGEST[dtype]
    return round_to(weight.float() / scale[:, None], dtype).contiguous(), scale


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """To the nearest value that there is; beyond the largest, the largest."""
    if dtype == BF16:
        return x.to(dtype)
    x = x.clamp(-LARGEST[dtype], LARGEST[dtype])
    return (x.round() if dtype == INT8 else x).to(dtype)
