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
plain model (benchmarks/notes.md). Outliers make steps coarse where they leave E4M3 as it is: a product
whose calibrated input has any (`MOST_UNEVEN`) takes E4M3, the expert as a whole then bf16. Nothing here has
been measured on trained weights.

Integers need Hopper and the published sizes. Elsewhere pi0 in fp8 has E4M3 in vision and language, and its
expert in bf16. They know no NaN: one in a row becomes zeros in what a product reads, and stays in the
residual.
"""

from __future__ import annotations

from collections.abc import Mapping

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

MOST_UNEVEN = 12.0
"""Largest magnitude over rms of an input, beyond which integers are no better than E4M3. With a
step of 1.2 * 12 / 127 of the rms they are wrong by 3.3 % (the step over the root of 12), and their weights by
0.9 %; E4M3 is by 2.6 % in both."""

IN_THE_EXPERT = ('unnormed_qkv', 'o', 'unnormed_gate_up')
"""What calibration calls the inputs of its products that may be integers."""


def uneven_products(crests: Mapping[str, float]) -> frozenset[str]:
    """Products whose inputs are too uneven for integers. crests: largest magnitude over rms, by
    calibration."""
    found = {name for name, crest in crests.items() if crest > MOST_UNEVEN}
    coupled = {'up': 'down', 'down': 'up'}  # vision's activation leaves what its own product took
    for tower, layer, part in [name.split('.') for name in found if name.count('.') == 2]:
        if tower == 'vision' and part in coupled:
            found.add(f'vision.{layer}.{coupled[part]}')
    return frozenset(found)


def tower_format(
    spec: PolicySpec, precision: str, tower: str, integers: bool, uneven: frozenset[str] = frozenset()
) -> str:
    """'bf16', 'fp8' or 'int8' for one of TOWERS of a policy of this precision.

    integers: whether there are kernels for them. uneven: see `uneven_products`. The expert's layers are one
    kernel: a single uneven product takes integers from all of them.
    """
    if precision == 'bf16' or spec.family != 'pi0':
        return precision
    hindered = tower == 'expert' and any(
        name.startswith('expert.') and name.split('.')[-1] in IN_THE_EXPERT for name in uneven
    )
    if integers and not hindered:
        return 'int8'
    return 'bf16' if tower == 'expert' else 'fp8'


def product_dtype(name: str, tower_format: str, uneven: frozenset[str] = frozenset()) -> torch.dtype:
    """Of weights and input of product `name`, such as 'language.3.down', in a tower of this format."""
    if tower_format == 'bf16':
        return BF16
    words = name.split('.')
    kept = f'{words[0]}.{words[-1]}' in WITHOUT_INTEGERS or name in uneven
    return E4M3 if tower_format == 'fp8' or kept else INT8


def as_input(buffer: Tensor, dtype: torch.dtype) -> Tensor:
    """A buffer of values of 8 bits as those that a product takes; buffers in bf16 as they are."""
    return buffer if buffer.dtype == BF16 else buffer.view(dtype)


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
