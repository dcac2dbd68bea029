"""The prefill's own products on Hopper: kernels/gated_gemm_sm90.cu and kernels/split_gemm_sm90.cu."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from flashrt_ros.engine.device import Gpu
from flashrt_ros.engine.gemm import Product
from flashrt_ros.engine.library import KernelLibrary
from flashrt_ros.engine.tensor_map import ROW_BYTES, tensor_map
from flashrt_ros.models.spec import GEMMA_2B, PolicySpec

KERNELS = 'gated_gemm', 'split_gemm'

TILE_ROWS, TILE_COLUMNS = 128, 256
THREADS = 288

MOST_PARTS = 5
"""Of K: more of them cost more to write and add up than they gain."""

PART_COST = 0.03
"""What writing and adding up a part takes, in units of the time a block needs for a tile at its full K."""


@dataclass(frozen=True)
class Ring:
    """across: blocks of a cluster that share rows. stages: of 128 bytes of K. prefetch: steps ahead."""

    across: int = 2
    stages: int = 4
    prefetch: int = 8

    def shared(self, fp8: bool) -> int:
        """Bytes of dynamic shared memory: stages, scales of two tiles, barriers."""
        scales = 8 * TILE_COLUMNS if fp8 else 0
        return self.stages * ((TILE_ROWS + TILE_COLUMNS) * ROW_BYTES + 16) + scales


RING = Ring()


def covers(gpu: Gpu, spec: PolicySpec) -> bool:
    """Whether the prefill multiplies by these kernels: on Hopper, at the published width."""
    return gpu.capability == (9, 0) and replace(spec.language, layers=GEMMA_2B.layers) == GEMMA_2B


def build(kernel: str, fp8: bool, ring: Ring = RING) -> tuple[str, dict[str, int]]:
    """Kernel file and constants, as `KernelLibrary.compile` takes them."""
    constants = {'ACROSS': ring.across, 'STAGES': ring.stages, 'PREFETCH': ring.prefetch, 'FP8': int(fp8)}
    return f'{kernel}_sm90', constants


def gated(
    library: KernelLibrary, x: Tensor, product: Product, out: Tensor, following: Product, ring: Ring = RING
) -> None:
    """x [rows, K] -> out [rows, width] = gelu(gate) * up for `following`; weight in `gated_order`."""
    rows, width = out.shape
    _launch(
        library,
        'gated_gemm',
        product,
        x,
        (product.channel_scale, out, following.inverse_scale, rows, width, _steps(x)),
        1,
        ring,
    )


def split(library: KernelLibrary, x: Tensor, product: Product, out: Tensor, ring: Ring = RING) -> None:
    """x [rows, K] -> out bf16 [parts, rows, columns], unscaled, over ranges of K; weight in `lane_order`."""
    parts, rows, columns = out.shape
    _launch(library, 'split_gemm', product, x, (out, rows, columns, _steps(x), parts), parts, ring)


def part_count(rows: int, columns: int, blocks: int) -> int:
    """Into how many parts of K to cut a product so that `blocks` blocks are busy and few parts are added."""
    tiles = -(-rows // TILE_ROWS) * (columns // TILE_COLUMNS)
    return min(
        range(1, MOST_PARTS + 1), key=lambda parts: -(-tiles * parts // blocks) / parts + PART_COST * parts
    )


def _steps(x: Tensor) -> int:
    return -(-x.shape[1] * x.element_size() // ROW_BYTES)


def _launch(
    library: KernelLibrary,
    name: str,
    product: Product,
    x: Tensor,
    arguments: tuple[Tensor | int | float | None, ...],
    parts: int,
    ring: Ring,
) -> None:
    file, constants = build(name, product.fp8, ring)
    tiles = -(-x.shape[0] // TILE_ROWS) * (product.weight.shape[0] // (TILE_COLUMNS * ring.across))
    clusters = min(tiles * parts, library.gpu.multiprocessors // ring.across)
    library.kernel(file, name, **constants)(
        clusters * ring.across,
        THREADS,
        tensor_map(x, TILE_ROWS // ring.across),
        tensor_map(product.weight, TILE_COLUMNS),
        *arguments,
        shared=ring.shared(product.fp8),
        cluster=ring.across if ring.across > 1 else None,
        dependent=True,
    )
