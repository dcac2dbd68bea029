"""Launches of the two attention kernels for Hopper; contracts are in kernels/*_attention_sm90.cu."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.cuda.launcher import Kernel
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.cuda.tensor_map import tensor_map
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.weights.formats import constants

HOPPER = (9, 0)
GEMMA_DIM, VISION_TOKENS, VISION_DIMS = 256, 256, range(64, 81, 8)
QUERIES = 128
"""Of a block of the Gemma attention."""

AT_ONCE, REPEATED = 192, (160, 128)
"""Keys that a block of the Gemma attention takes at once: when that suffices, and when it repeats it. Four
passes of 128 keys are faster than of 160 that are partly empty (benchmarks/notes.md)."""

MOST_BLOCKS = 8
"""In a cluster."""

GEMMA_THREADS, GEMMA_SHARED = 256, 225 << 10
SHARERS = 2
"""Blocks of the vision attention that send each other keys and values."""

Build = tuple[str, dict[str, int]]


def covers_gemma(gpu: Gpu, dim: int) -> bool:
    return gpu.capability == HOPPER and dim == GEMMA_DIM


def covers_vision(gpu: Gpu, tokens: int, dim: int) -> bool:
    return gpu.capability == HOPPER and tokens == VISION_TOKENS and dim in VISION_DIMS


def gemma_builds(heads: int, dtype: torch.dtype) -> list[Build]:
    """dtype: of what they leave, as in `vision_build`."""
    return [_gemma_build(heads, keys, dtype) for keys in (AT_ONCE, *REPEATED)]


def _gemma_build(heads: int, keys: int, dtype: torch.dtype) -> Build:
    more = int(keys != AT_ONCE)
    return 'gemma_attention_sm90', {'HEADS': heads, 'KEYS': keys, 'MORE': more, **constants(dtype)}


def vision_build(heads: int, dim: int, dtype: torch.dtype) -> Build:
    return 'vision_attention_sm90', {'HEADS': heads, 'DIM': dim, 'SHARERS': SHARERS, **constants(dtype)}


def split_keys(tiles: int, capacity: int, most_clusters: Callable[[int], int]) -> int:
    """Over how many blocks the keys of each of `tiles` tiles of queries go.

    No more than it takes for a block to see its share at once, as long as all blocks run at the same time.
    most_clusters: how many clusters of so many blocks there can be.
    """
    possible = [n for n in range(1, MOST_BLOCKS + 1) if n == 1 or tiles <= most_clusters(n)]
    return next((n for n in possible if n * AT_ONCE >= capacity), possible[-1])


def keys_at_once(share: int) -> int:
    """Of a block that has so many: the fewest that it takes no more passes with."""
    if share <= AT_ONCE:
        return AT_ONCE
    share = -(-share // 16) * 16
    return min(REPEATED, key=lambda keys: (-(-share // keys), keys))


def gemma(
    library: KernelLibrary,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    arguments: tuple[Tensor, int, int, int],
    out: Tensor,
    inverse_scale: float,
) -> None:
    """arguments: length, appended, first_sees and rows of the contract."""
    flat = queries.view(-1, GEMMA_DIM)
    tiles, heads = -(-len(flat) // QUERIES), queries.shape[1] // GEMMA_DIM

    def kernel(keys: int) -> Kernel:
        file, sizes = _gemma_build(heads, keys, out.dtype)
        return library.kernel(file, 'gemma_attention', **sizes)

    split = split_keys(
        tiles, len(keys), lambda n: kernel(AT_ONCE).most_clusters((1, n), GEMMA_THREADS, GEMMA_SHARED)
    )
    box = keys_at_once(-(-len(keys) // split))
    kernel(box)(
        (tiles, split),
        GEMMA_THREADS,
        tensor_map(flat, QUERIES),
        tensor_map(keys, box),
        tensor_map(values, box),
        *arguments,
        out,
        inverse_scale,
        shared=GEMMA_SHARED,
        cluster=(1, split),
        dependent=True,
    )


def vision(
    library: KernelLibrary, qkv: Tensor, preceding: Product, heads: int, out: Tensor, inverse_scale: float
) -> None:
    dim, views = out.shape[1] // heads, qkv.shape[0] // VISION_TOKENS
    file, sizes = vision_build(heads, dim, out.dtype)
    library.kernel(file, 'vision_attention', **sizes)(
        (4, heads, views),
        128,
        tensor_map(qkv, 64),
        tensor_map(qkv, 64, 32),
        preceding.channel_scale,
        preceding.bias,
        out,
        inverse_scale,
        shared=1152 * (80 if dim > 64 else 64) + 1024,
        cluster=SHARERS,
        dependent=True,
    )
