"""Our Hopper products of the vision tower against the library's, as a graph would run them with cold weights.

usage: python -m benchmarks.gemm_tiles [--rows 512] [--precision fp8 bf16 int8]

Ours include GELU (up) or leave sums over parts of K (o, down), which the norm behind them adds; the library's
do neither. What counts is the tower: `python -m benchmarks.chains`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence

import torch

from benchmarks.machine import median_ms
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.operators.fused_gemm import FusedProduct, Tiling, build
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.towers.vision_tilings import EPILOGUES
from flashrt_ros.engine.weights.formats import product_dtype
from flashrt_ros.engine.weights.packing import pack_product
from flashrt_ros.errors import FlashRTError

SHAPES = {'qkv': (3456, 1152), 'o': (1152, 1152), 'up': (4304, 1152), 'down': (1152, 4304)}
COPIES = 16
"""Weights in turn, so that they come from memory and not from the second-level cache."""

TILINGS = [
    Tiling(columns, stages, parts, down)
    for columns, stages in (
        (64, 6),
        (80, 5),
        (96, 5),
        (112, 5),
        (128, 5),
        (144, 3),
        (144, 5),
        (160, 5),
        (208, 4),
    )
    for parts in (1, 2, 3, 4)
    for down in (1, 2)
]


def graph_time(launches: Sequence[Callable[[], None]]) -> float:
    """Microseconds of one launch when they follow each other in a graph."""
    for launch in launches:
        launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    return median_ms(graph.replay) / len(launches) * 1e3


def tilings(name: str) -> list[Tiling]:
    """Those that a product can take: only what a norm follows may be left in parts."""
    return [t for t in TILINGS if t.parts == 1 or name in ('o', 'down')]


def compare(library: KernelLibrary, name: str, rows: int, precision: str) -> list[tuple[float, str]]:
    """Microseconds of the library's product, then of each tiling."""
    columns, depth = SHAPES[name]
    device = torch.device('cuda')
    packed = pack_product('p', torch.randn(columns, depth, device=device) / depth**0.5, None, precision)
    packed['p.bias'] = torch.zeros(columns, device=device)
    products = [Product({k: v.clone() for k, v in packed.items()}, 'p', device, 0.02) for _ in range(COPIES)]
    x = torch.randn(rows, depth, device=device).to(products[0].dtype)
    raw = torch.empty(4, rows, columns, dtype=torch.bfloat16, device=device)
    times = [(graph_time([lambda p=p: p(x, raw[0]) for p in products]), 'library')]
    narrow = torch.empty(rows, columns, dtype=products[0].dtype, device=device)
    for tiling in tilings(name):
        out = narrow if name == 'up' else raw[: tiling.parts]
        following = products[0] if name == 'up' else None
        try:
            fused = [
                FusedProduct(library, p, x, out, EPILOGUES[name], tiling, following=following)
                for p in products
            ]
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
    cases = list(itertools.product(arguments.precision, SHAPES))
    library.compile(
        build(t, EPILOGUES[name], product_dtype('p', p)) for p, name in cases for t in tilings(name)
    )
    for precision, name in cases:
        times = compare(library, name, arguments.rows, precision)
        best = '; '.join(f'{time:.2f} {label}' for time, label in sorted(times[1:])[:4])
        print(f'{precision} {name} rows {arguments.rows}: library {times[0][0]:.2f} us; {best}', flush=True)


if __name__ == '__main__':
    main()
