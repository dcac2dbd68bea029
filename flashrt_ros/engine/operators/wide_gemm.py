"""The prefill's own products on Hopper: kernels/gated_gemm_sm90.cu and kernels/split_gemm_sm90.cu."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.cuda.tensor_map import ROW_BYTES, tensor_map
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.weights.formats import constants, product_dtype
from flashrt_ros.models.spec import GEMMA_2B, PolicySpec

KERNELS = 'gated_gemm', 'split_gemm'

MOST_PARTS = 5
"""Of K: more of them cost more to write and add up than they gain."""

PART_COST = 1000
"""What writing and adding up a part takes, as tile area that a block could multiply by all of K meanwhile."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of 128 x 256 with two warpgroups, of 192 x 192 with three. stages: of 128 bytes of K."""

    warpgroups: int
    stages: int = 4

    @property
    def rows(self) -> int:
        return 64 * self.warpgroups

    @property
    def columns(self) -> int:
        return 256 if self.warpgroups == 2 else 192

    def shared(self, narrow: bool) -> int:
        """Bytes of dynamic shared memory: stages and their barriers, scales of stages + 1 tiles."""
        scales = (self.stages + 1) * self.columns * 4 if narrow else 0
        return self.stages * ((self.rows + self.columns) * ROW_BYTES + 16) + scales

    def tiles(self, rows: int, columns: int) -> int:
        """How many cover a result."""
        return -(-rows // self.rows) * -(-columns // self.columns)

    def cost(self, rows: int, columns: int, parts: int, blocks: int) -> float:
        """Time on `blocks` multiprocessors, as tile area that the busiest one multiplies by all of K."""
        rounds = -(-self.tiles(rows, columns) * parts // blocks)
        return rounds * self.rows * self.columns / parts + parts * PART_COST


TILINGS = (Tiling(2), Tiling(3))
"""The choice between them follows from the number of rows."""


def covers(gpu: Gpu, spec: PolicySpec, precision: str, views: int) -> bool:
    """Whether the prefill of a policy with so many views multiplies by these kernels.

    On Hopper, at the published width. The 320 rows of one view and a short prompt are faster with the library
    in bf16, and weights are packed for one or the other (benchmarks/notes.md).
    """
    published = replace(spec.language, layers=GEMMA_2B.layers) == GEMMA_2B
    return gpu.capability == (9, 0) and published and (precision != 'bf16' or views > 1)


def build(kernel: str, dtype: torch.dtype, tiling: Tiling) -> tuple[str, dict[str, int]]:
    """Kernel file and constants, as `KernelLibrary.compile` takes them. dtype: of the operands."""
    sizes = {'WARPGROUPS': tiling.warpgroups, 'STAGES': tiling.stages}
    return f'{kernel}_sm90', sizes | constants(dtype)


def builds(tower_format: str) -> list[tuple[str, dict[str, int]]]:
    """All that a prefill of this format may launch."""
    parts = zip(KERNELS, ('gate_up', 'down'), strict=True)
    dtypes = {kernel: product_dtype(f'language.0.{part}', tower_format) for kernel, part in parts}
    return [build(kernel, dtypes[kernel], tiling) for kernel in KERNELS for tiling in TILINGS]


def choose(rows: int, columns: int, parts: int, blocks: int) -> Tiling:
    """The tiling that takes least time for a product in `parts` ranges of K."""
    return min(TILINGS, key=lambda tiling: tiling.cost(rows, columns, parts, blocks))


def part_count(rows: int, columns: int, blocks: int) -> int:
    """Into how many parts of K to cut a product so that `blocks` multiprocessors are busy and few parts are
    added."""
    return min(
        range(1, MOST_PARTS + 1),
        key=lambda parts: min(tiling.cost(rows, columns, parts, blocks) for tiling in TILINGS),
    )


def gated(
    library: KernelLibrary,
    x: Tensor,
    product: Product,
    out: Tensor,
    following: Product,
    tiling: Tiling | None = None,
) -> None:
    """x [rows, K] -> out [rows, width] = gelu(gate) * up for `following`; weight in `gated_order`."""
    rows, width = out.shape
    tiling = tiling or choose(rows, 2 * width, 1, library.gpu.multiprocessors)
    arguments = (product.channel_scale, out, following.inverse_scale, rows, width, _steps(x))
    _launch(library, 'gated_gemm', product, x, arguments, 1, tiling)


def split(
    library: KernelLibrary, x: Tensor, product: Product, out: Tensor, tiling: Tiling | None = None
) -> None:
    """x [rows, K] -> out bf16 [parts, rows, columns], unscaled, over ranges of K; weight in `lane_order`."""
    parts, rows, columns = out.shape
    tiling = tiling or choose(rows, columns, parts, library.gpu.multiprocessors)
    _launch(library, 'split_gemm', product, x, (out, rows, columns, _steps(x), parts), parts, tiling)


def _steps(x: Tensor) -> int:
    return -(-x.shape[1] * x.element_size() // ROW_BYTES)


def _launch(
    library: KernelLibrary,
    kernel: str,
    product: Product,
    x: Tensor,
    arguments: tuple[Tensor | int | float | None, ...],
    parts: int,
    tiling: Tiling,
) -> None:
    file, sizes = build(kernel, product.dtype, tiling)
    tiles = tiling.tiles(x.shape[0], product.weight.shape[0])
    library.kernel(file, kernel, **sizes)(
        min(tiles * parts, library.gpu.multiprocessors),
        128 * tiling.warpgroups + 32,
        tensor_map(x, tiling.rows),
        tensor_map(product.weight, tiling.columns),
        *arguments,
        shared=tiling.shared(product.narrow),
        dependent=True,
    )
