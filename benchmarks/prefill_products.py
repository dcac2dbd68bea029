"""The prefill's MLP: products of ours against the library's with the kernels around them, by row count.

usage: python -m benchmarks.prefill_products [--precision fp8 bf16 int8] [--rows 320 576 640 768]

Times are microseconds in a graph, with weights in turn so that they come from memory: gate and up with GELU,
down with the norm behind it, and the chain norm, gate and up, down, norm. A tiling is named by its rows and
columns, and by the number of parts of K where there are several.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gemm_tiles import graph_time
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.operators.gemm import MOST_PADDING, Product, library_rows
from flashrt_ros.engine.operators.wide_gemm import TILINGS, Tiling, builds, gated, part_count, split
from flashrt_ros.engine.weights.packing import pack_product
from flashrt_ros.models.spec import GEMMA_2B

WIDTH, MLP = GEMMA_2B.width, GEMMA_2B.mlp
COPIES = 4
"""Weights in turn: 34 MB or more each, so none is left in the second-level cache when its turn comes."""


def weights(name: str, columns: int, depth: int, precision: str) -> list[Product]:
    """Random ones; rows in any order are as good for timing."""
    device = torch.device('cuda')
    values = (torch.randn(columns, depth, device=device) / depth**0.5 for _ in range(COPIES))
    return [Product(pack_product(name, weight, None, precision), name, device, 0.02) for weight in values]


class Mlp:
    """One precision and row count, with the launches of a layer's MLP by the library or by us."""

    def __init__(self, library: KernelLibrary, precision: str, rows: int) -> None:
        self.library, self.operators, self.rows = library, Operators(library), rows
        self.gate_up = weights('language.gate_up', 2 * MLP, WIDTH, precision)
        self.down = weights('language.down', WIDTH, MLP, precision)
        narrow, padded = self.down[0].dtype, rows + MOST_PADDING

        def buffer(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.randn(rows, columns, device='cuda').to(dtype)

        self.residual, self.normed = (
            buffer(rows, WIDTH, torch.float32),
            buffer(rows, WIDTH, self.gate_up[0].dtype),
        )
        self.hidden, self.raw = buffer(padded, MLP, narrow), buffer(rows, 2 * MLP)
        self.delta = buffer(padded, WIDTH)

    def library_gate(self, i: int) -> None:
        self.gate_up[i](self.normed, self.raw)
        self.operators.gelu_gate(self.raw, self.gate_up[i], self.hidden[: self.rows], self.down[i])

    def our_gate(self, i: int, tiling: Tiling | None = None) -> None:
        gated(self.library, self.normed, self.gate_up[i], self.hidden[: self.rows], self.down[i], tiling)

    def library_down(self, i: int) -> None:
        count = library_rows(self.down[i], self.rows)
        self.down[i](self.hidden[:count], self.delta[:count])
        self.norm(i, self.delta[: self.rows])

    def our_down(self, i: int, parts: Tensor, tiling: Tiling | None = None) -> None:
        split(self.library, self.hidden[: self.rows], self.down[i], parts, tiling)
        self.norm(i, parts)

    def norm(self, i: int, delta: Tensor | None) -> None:
        self.operators.norm(self.residual, self.normed, self.gate_up[i], delta=delta, preceding=self.down[i])

    def parts(self, count: int) -> Tensor:
        return torch.zeros(count, self.rows, WIDTH, dtype=torch.bfloat16, device='cuda')


def in_turn(launch: Callable[[int], None]) -> float:
    return graph_time([lambda i=i: launch(i) for i in range(COPIES)])


def gate_times(mlp: Mlp) -> dict[str, float]:
    times = {'library': in_turn(mlp.library_gate)}
    for tiling in TILINGS:
        times[f'{tiling.rows}x{tiling.columns}'] = in_turn(lambda i, t=tiling: mlp.our_gate(i, t))
    return times | {'chosen': in_turn(mlp.our_gate)}


def down_times(mlp: Mlp, blocks: int) -> dict[str, float]:
    times = {'library': in_turn(mlp.library_down)}
    chosen = part_count(mlp.rows, WIDTH, blocks)
    for count in sorted({3, 4, chosen}):
        parts = mlp.parts(count)
        for tiling in TILINGS:
            name = f'{tiling.rows}x{tiling.columns}/{count}'
            times[name] = in_turn(lambda i, p=parts, t=tiling: mlp.our_down(i, p, t))
    parts = mlp.parts(chosen)
    return times | {'chosen': in_turn(lambda i: mlp.our_down(i, parts))}


def chain_times(mlp: Mlp, blocks: int) -> dict[str, float]:
    parts = mlp.parts(part_count(mlp.rows, WIDTH, blocks))

    def layer(i: int, gate: Callable[[int], None], down: Callable[[int], None]) -> None:
        mlp.norm(i, None)
        gate(i)
        down(i)

    def our_down(i: int) -> None:
        mlp.our_down(i, parts)

    return {
        'library': in_turn(lambda i: layer(i, mlp.library_gate, mlp.library_down)),
        'our gate and up': in_turn(lambda i: layer(i, mlp.our_gate, mlp.library_down)),
        'our down': in_turn(lambda i: layer(i, mlp.library_gate, our_down)),
        'both': in_turn(lambda i: layer(i, mlp.our_gate, our_down)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    parser.add_argument('--rows', nargs='+', type=int, default=[320, 512, 576, 640, 768, 896])
    arguments = parser.parse_args()
    library = KernelLibrary(find_gpu())
    blocks = library.gpu.multiprocessors
    library.compile(build for precision in arguments.precision for build in builds(precision))
    for precision in arguments.precision:
        for rows in arguments.rows:
            mlp = Mlp(library, precision, rows)
            for name, times in (
                ('gate, up, GELU', gate_times(mlp)),
                ('down, norm', down_times(mlp, blocks)),
                ('chain', chain_times(mlp, blocks)),
            ):
                line = '; '.join(f'{label} {time:.1f}' for label, time in times.items())
                print(f'{precision} {rows} rows, {name}: {line}', flush=True)


if __name__ == '__main__':
    main()
