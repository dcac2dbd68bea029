"""Products of kernels/gemm_sm90.cu: cut to fill a Hopper GPU once, followed by GELU or left in parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import round_up
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.cuda.tensor_map import ROW_BYTES, plain_map, tensor_map
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.weights.formats import constants

RAW, GELU = range(2)

TILE_ROWS, WARPGROUP_ROWS, THREADS = 128, 64, 288


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: 128 rows by `columns` a block, K into `parts`.

    stages: steps of 128 bytes of K in flight. down: blocks that send each other the weights they share.
    """

    columns: int
    stages: int
    parts: int = 1
    down: int = 2

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory, with room to align the ring."""
        return self.stages * (TILE_ROWS + self.columns) * ROW_BYTES + 1024


def build(tiling: Tiling, epilogue: int, dtype: torch.dtype) -> tuple[str, dict[str, int]]:
    """The kernel file and the constants of one variant, as `KernelLibrary.compile` takes them. dtype: of the
    operands, and of what GELU leaves."""
    return 'gemm_sm90', {
        'TILE_N': tiling.columns,
        'STAGES': tiling.stages,
        'DOWN': tiling.down,
        'EPILOGUE': epilogue,
        **constants(dtype),
    }


WIDTHS = (64, 80, 96, 112, 128, 144, 160, 176, 192, 208)
"""Columns that a block may have (kernels/wgmma_tiles.cuh)."""

MOST_PARTS = 1
"""Of K, where what follows adds them up (the prefill's QKV and output in integers). Two were
no faster (benchmarks/notes.md)."""

PART_COST = 50_000
"""What writing and adding up a part takes, as bytes that a block could fetch meanwhile."""


def plain_tiling(rows: int, columns: int, row_bytes: int, blocks: int, most_parts: int = 1) -> Tiling:
    """For a product whose rows have so many bytes of K: least bytes through the port of the busiest
    of `blocks` multiprocessors, which is what bounds it."""
    tiles = -(-rows // TILE_ROWS)

    def cost(cut: tuple[int, int]) -> float:
        width, parts = cut
        rounds = -(-tiles * parts * -(-columns // width) // blocks)
        return rounds * (TILE_ROWS + width) * row_bytes / parts + (parts - 1) * PART_COST

    width, parts = min(itertools.product(WIDTHS, range(1, most_parts + 1)), key=cost)
    return Tiling(width, 5 if width <= 176 else 4, parts, down=1 if tiles % 2 else 2)


class FusedProduct:
    """One product on fixed operands; a call launches it. x [rows, in] and out keep their addresses.

    epilogue: RAW (out bf16 [parts, rows, out], unscaled sums over parts of K) or GELU (out [rows, out] for
    `following`). ahead: up to two products whose weights it brings into the second-level cache.
    """

    def __init__(
        self,
        library: KernelLibrary,
        product: Product,
        x: Tensor,
        out: Tensor,
        epilogue: int,
        tiling: Tiling,
        *,
        following: Product | None = None,
        ahead: Sequence[Product] = (),
    ) -> None:
        file, sizes = build(tiling, epilogue, product.dtype)
        self._kernel = library.kernel(file, 'gemm', **sizes)
        rows, columns = x.shape[0], product.weight.shape[0]
        self._tiling = tiling
        self._grid = (
            -(-columns // tiling.columns),
            round_up(-(-rows // TILE_ROWS), tiling.down),
            tiling.parts,
        )
        self._operands = (x, out, product, following)  # keeps the memory that the maps point to
        weights = [(p.weight, p.weight.numel() * p.weight.element_size()) for p in ahead]
        soon, later = [*weights, (None, 0), (None, 0)][:2]
        self._arguments = (
            tensor_map(x, TILE_ROWS),
            tensor_map(product.weight, tiling.columns // tiling.down),
            plain_map(out.view(-1, rows, columns), WARPGROUP_ROWS, tiling.columns),
            product.channel_scale if epilogue == GELU else None,
            product.bias if epilogue == GELU else None,
            1.0 if following is None else following.inverse_scale,
            columns,
            -(-x.shape[1] * x.element_size() // ROW_BYTES),
            *soon,
            *later,
        )

    def __call__(self) -> None:
        tiling = self._tiling
        self._kernel(
            self._grid,
            THREADS,
            *self._arguments,
            shared=tiling.shared,
            cluster=(1, tiling.down, 1) if tiling.down > 1 else None,
            dependent=True,
        )
