"""Our Hopper products against the library's, shape by shape, as a graph would run them with cold weights.

usage: python -m benchmarks.gemm_tiles [--rows 512] [--precision fp8 bf16]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator

import torch

from benchmarks.machine import median_ms
from flashrt_ros.engine.device import find_gpu
from flashrt_ros.engine.fused_gemm import RAW, RESIDUAL, FusedProduct, Tiling, build
from flashrt_ros.engine.gemm import Product
from flashrt_ros.engine.library import KernelLibrary
from flashrt_ros.engine.packing import pack_product
from flashrt_ros.errors import FlashRTError

SHAPES = {'qkv': (3456, 1152), 'o': (1152, 1152), 'up': (4304, 1152), 'down': (1152, 4304)}
COPIES = 16
"""Weights in turn, so that they come from memory and not from the second-level cache."""


def batched(numbers: Iterable[int], size: int = 6) -> Iterator[tuple[int, ...]]:
    """Consecutive groups of `size` numbers."""
    values = list(numbers)
    return (tuple(values[i : i + size]) for i in range(0, len(values), size))


CUTS = """
2 128 5 1 1 1   2 128 5 1 1 4   2 128 5 1 2 4   2 128 3 1 1 4   2 128 3 1 2 2   2 96 6 1 1 4   2 96 6 1 2 4
2 64 6 1 1 4    2 64 8 1 2 4    1 64 8 1 1 8    1 96 6 1 1 4    2 128 5 2 1 4   2 96 6 2 1 4   2 64 8 2 1 4
2 128 5 4 1 2   2 96 6 3 1 2    1 64 9 1 1 1    1 64 12 1 1 1
"""
"""Tilings to try: warpgroups, columns, stages, split, across, down."""

TILINGS = [Tiling(*cut) for cut in batched(map(int, CUTS.split()))]


def graph_time(launches) -> float:
    """Microseconds of one launch when COPIES of them follow each other in a graph."""
    for launch in launches:
        launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    return median_ms(graph.replay) / len(launches) * 1e3


def compare(library: KernelLibrary, name: str, rows: int, precision: str) -> list[tuple[float, str]]:
    columns, depth = SHAPES[name]
    device = torch.device('cuda')
    weight = torch.randn(columns, depth, device=device) / depth**0.5
    products = [Product(pack_product('p', weight, None, precision), 'p', device, 0.02) for _ in range(COPIES)]
    x = torch.randn(rows, depth, device=device).to(products[0].dtype)
    raw = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
    residual = torch.zeros(rows, columns, device=device)
    epilogue, out = (RESIDUAL, residual) if name in ('o', 'down') else (RAW, raw)
    times = [(graph_time([lambda p=p: p(x, raw) for p in products]), 'library')]
    for tiling in TILINGS:
        try:
            fused = [FusedProduct(library, p, x, out, epilogue, tiling) for p in products]
            times.append((graph_time(fused), str(tiling)))
        except FlashRTError as error:
            times.append((float('inf'), f'{tiling}: {error}'))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rows', type=int, default=512)
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    arguments = parser.parse_args()
    library = KernelLibrary(find_gpu())
    library.compile(
        build(t, e, p == 'fp8') for t in TILINGS for e in (RAW, RESIDUAL) for p in arguments.precision
    )
    for precision, name in itertools.product(arguments.precision, SHAPES):
        times = compare(library, name, arguments.rows, precision)
        best = '; '.join(f'{time:.2f} {label}' for time, label in sorted(times[1:])[:4])
        print(f'{precision} {name} rows {arguments.rows}: library {times[0][0]:.2f} us; {best}', flush=True)


if __name__ == '__main__':
    main()
