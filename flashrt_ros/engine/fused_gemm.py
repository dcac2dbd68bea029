"""Products of kernels/gemm_sm90.cu: what follows the product happens in its epilogue (Hopper only)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flashrt_ros.engine.buffers import round_up
from flashrt_ros.engine.gemm import Product
from flashrt_ros.engine.library import KernelLibrary
from flashrt_ros.engine.tensor_map import ROW_BYTES, tensor_map

RAW, GELU, RESIDUAL = range(3)


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: 64 * warpgroups rows by tile_n columns a block, K over `split` blocks.

    across, down: blocks that share rows or columns and send each other the operands. A cluster is across by
    down by split blocks, eight at most.
    """

    warpgroups: int = 2
    tile_n: int = 128
    stages: int = 5
    split: int = 1
    across: int = 1
    down: int = 1

    @property
    def rows(self) -> int:
        return 64 * self.warpgroups

    @property
    def cluster(self) -> tuple[int, int, int]:
        return self.across, self.down, self.split

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory, with room to align the ring."""
        return self.stages * (self.rows + self.tile_n) * ROW_BYTES + 1024


def build(tiling: Tiling, epilogue: int, fp8: bool) -> tuple[str, dict[str, int]]:
    """The kernel file and the constants of one variant, as `KernelLibrary.compile` takes them."""
    return 'gemm_sm90', {
        'WARPGROUPS': tiling.warpgroups,
        'TILE_N': tiling.tile_n,
        'STAGES': tiling.stages,
        'SPLIT': tiling.split,
        'ACROSS': tiling.across,
        'DOWN': tiling.down,
        'EPILOGUE': epilogue,
        'FP8': int(fp8),
    }


class FusedProduct:
    """One product on fixed operands; a call launches it. x [rows, in] and out keep their addresses.

    epilogue: RAW (out bf16 unscaled), GELU (out for `following`), RESIDUAL (out fp32, added to).
    """

    def __init__(
        self,
        library: KernelLibrary,
        product: Product,
        x: Tensor,
        out: Tensor,
        epilogue: int,
        tiling: Tiling,
        following: Product | None = None,
    ) -> None:
        file, constants = build(tiling, epilogue, product.fp8)
        self._kernel = library.kernel(file, 'gemm', **constants)
        rows, columns = x.shape[0], product.weight.shape[0]
        self._grid = (
            round_up(-(-columns // tiling.tile_n), tiling.across),
            round_up(-(-rows // tiling.rows), tiling.down),
            tiling.split,
        )
        self._tiling = tiling
        self._operands = (x, out, product, following)  # keeps the memory that the maps point to
        inverse_scale = 1.0 if following is None else following.inverse_scale
        plain = epilogue == RAW
        self._arguments = (
            tensor_map(x, tiling.rows // tiling.across),
            tensor_map(product.weight, tiling.tile_n // tiling.down),
            None if plain else product.channel_scale,
            None if plain else product.bias,
            out,
            inverse_scale,
            rows,
            columns,
            -(-x.shape[1] * x.element_size() // ROW_BYTES),
        )

    def __call__(self) -> None:
        tiling = self._tiling
        self._kernel(
            self._grid,
            tiling.warpgroups * 128 + 32,
            *self._arguments,
            shared=tiling.shared,
            cluster=tiling.cluster if tiling.cluster != (1, 1, 1) else None,
            dependent=True,
        )
