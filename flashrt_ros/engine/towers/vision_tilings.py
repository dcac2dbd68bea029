"""How the products of SigLIP So400m are cut on an H100, by the number of rows; see benchmarks/notes.md."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.operators.fused_gemm import GELU, RAW, Tiling, build
from flashrt_ros.models.spec import VisionSpec

Tilings = Mapping[int, Mapping[str, Tiling]]
"""Number of rows -> products that are ours -> how they are cut."""

EPILOGUES = {'qkv': RAW, 'o': RAW, 'up': GELU, 'down': RAW}

AHEAD = {'qkv': ('up',), 'o': ('down',), 'up': ('next qkv',)}
"""Product -> those whose weights it brings into the second-level cache, while memory has less to do."""

_ONE_VIEW = {'qkv': Tiling(64, 5), 'o': Tiling(96, 3, 3), 'up': Tiling(80, 5), 'down': Tiling(80, 5, 4)}
_TWO_VIEWS = {'o': Tiling(144, 3, 3), 'up': Tiling(144, 5), 'down': Tiling(144, 5, 4)}
_THREE_VIEWS = {
    'qkv': Tiling(160, 5),
    'o': Tiling(144, 3, 2),
    'up': Tiling(208, 4),
    'down': Tiling(192, 4, 3),
}

SO400M: Mapping[str, Tilings] = {
    'fp8': {
        256: _ONE_VIEW,
        512: _TWO_VIEWS | {'qkv': Tiling(112, 4)},
        768: _THREE_VIEWS | {'o': Tiling(112, 4, 2), 'down': Tiling(176, 5, 3)},
    },
    'bf16': {256: _ONE_VIEW, 512: _TWO_VIEWS, 768: _THREE_VIEWS},
}
"""By precision. As many blocks as fit the 132 multiprocessors at once; with four stages QKV leaves room for a
block of the attention beside it."""


def tower_tilings(gpu: Gpu, spec: VisionSpec, narrow: bool) -> Tilings:
    """What a tower uses; the library has all other products and row counts. narrow: whether in 8 bits."""
    covered = gpu.capability == (9, 0) and (spec.width, spec.mlp) == (1152, 4304)
    return SO400M['fp8' if narrow else 'bf16'] if covered else {}


def tiling_builds(tilings: Tilings, dtype: torch.dtype) -> list[tuple[str, dict[str, int]]]:
    """The kernel files and constants of all products in `tilings`."""
    return [
        build(tiling, EPILOGUES[part], dtype)
        for products in tilings.values()
        for part, tiling in products.items()
    ]


def sum_parts(tilings: Tilings) -> set[int]:
    """In how many parts the norms find sums: one from the library and the patch embedding."""
    return {
        1,
        *(
            products[part].parts
            for products in tilings.values()
            for part in ('o', 'down')
            if part in products
        ),
    }
