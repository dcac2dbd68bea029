"""Each kernel of vision and prefill alone, library products by row count, and variants of the tower.

usage: python -m benchmarks.chains [--precision fp8 bf16 int8]

A chain repeats one launch on the same data, so its times are what a launch adds when everything is in the
second-level cache; products take turns among several weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch

from benchmarks.gemm_tiles import graph_time
from flashrt_ros.engine.buffers import rotary_table
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.operators.fused_gemm import Tiling
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.towers.vision import VisionTower
from flashrt_ros.engine.towers.vision_tilings import SO400M, tiling_builds
from flashrt_ros.engine.weights.formats import product_dtype
from flashrt_ros.engine.weights.packing import pack_product, pack_vision
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import PI05

LENGTH = 20


def variants(own: Mapping[str, Tiling]) -> dict[str, dict[str, Tiling]]:
    """Which products of the tower are ours: none, each alone, all, and all but one."""
    alone = {f'{part} ours': {part: tiling} for part, tiling in own.items()}
    without = {f'all but {part}': {k: t for k, t in own.items() if k != part} for part in own}
    return {'library': {}} | alone | {'all ours': dict(own)} | without


def operator_times(library: KernelLibrary, precision: str) -> dict[str, float]:
    """Microseconds of the kernels around the products, at two views and 64 prompt rows."""
    ops, device = Operators(library), torch.device('cuda')
    narrow = product_dtype('vision.0.qkv', precision)

    def product(out: int) -> Product:
        return Product(pack_product('p', torch.randn(out, 64), torch.randn(out), precision), 'p', device, 0.1)

    def bf16(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(torch.bfloat16)

    def target(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device=device).to(narrow)

    after, length = product(16), torch.tensor([562], dtype=torch.int32, device=device)
    residual = {width: torch.randn(576, width, device=device) for width in (1152, 2048)}
    qkv, gate_up, table = bf16(576, 2560), bf16(576, 32768), rotary_table(704, 256, device)
    keys, values, queries = bf16(576, 256), bf16(576, 256), bf16(576, 2048)
    scales = {width: product(width) for width in (1152, 2048, 2560, 3456, 4304, 32768)}
    vision_qkv, up, delta = bf16(512, 3456), bf16(512, 4304), bf16(576, 2048)
    out = {width: target(576, width) for width in (1152, 2048, 4304, 16384)}
    vision, sums = residual[1152][:512], bf16(4, 512, 1152)
    launches = {
        **{
            f'vision norm, {parts} parts': lambda parts=parts: ops.layer_norm(
                vision, out[1152][:512], after, sums[:parts], preceding=scales[1152]
            )
            for parts in (1, 3, 4)
        },
        'vision attention': lambda: ops.vision_attention(
            vision_qkv, scales[3456], 256, 16, out[1152][:512], after
        ),
        'vision gelu': lambda: ops.bias_gelu(up, scales[4304], out[4304][:512], after),
        'norm + delta': lambda: ops.norm(
            residual[2048], out[2048], after, delta=delta, preceding=scales[2048]
        ),
        'rope': lambda: ops.rope(qkv, scales[2560], table, None, queries, keys, values),
        'attention': lambda: ops.attention(queries, keys, values, length, out[2048], after),
        'gelu gate': lambda: ops.gelu_gate(gate_up, scales[32768], out[16384], after),
    }
    return {name: graph_time([launch] * LENGTH) for name, launch in launches.items()}


def product_times(precision: str) -> dict[str, str]:
    """Microseconds of the prefill's library products by rows."""
    device, result = torch.device('cuda'), {}
    for name, columns, depth in (
        ('qkv', 2560, 2048),
        ('o', 2048, 2048),
        ('gate_up', 32768, 2048),
        ('down', 2048, 16384),
    ):
        packed = pack_product('p', torch.randn(columns, depth, device=device), None, precision)
        products = [Product({k: v.clone() for k, v in packed.items()}, 'p', device) for _ in range(6)]
        times = []
        for rows in (560, 576, 592, 608, 640, 672, 704, 768):
            x = torch.randn(rows, depth, device=device).to(products[0].dtype)
            out = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
            times.append(f'{rows}: {graph_time([lambda p=p, x=x, out=out: p(x, out) for p in products]):.1f}')
        result[name] = ', '.join(times)
    return result


def tower_times(library: KernelLibrary, precision: str) -> dict[str, float]:
    """Microseconds of a layer of the vision tower by views and by which products are ours."""
    packed = pack_vision(random_tensors(PI05, 0, torch.float32, 'cuda'), PI05, precision)
    result = {}
    for rows, own in SO400M[tilings_of(precision)].items():
        views = rows // PI05.vision.tokens
        frames = torch.rand(views, 3, 224, 224, device='cuda')
        for name, products in variants(own).items():
            tower = VisionTower(Operators(library), PI05.vision, packed, {}, views, {rows: products})
            time = graph_time([lambda t=tower, f=frames: t.run(f)])
            result[f'{views} views, {name}'] = time / PI05.vision.layers
    return result


def tilings_of(precision: str) -> str:
    return 'bf16' if precision == 'bf16' else 'fp8'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    arguments = parser.parse_args()
    library = KernelLibrary(find_gpu())
    for precision in arguments.precision:
        library.compile(
            tiling_builds(SO400M[tilings_of(precision)], product_dtype('vision.0.qkv', precision))
        )
    for precision in arguments.precision:
        for name, time in operator_times(library, precision).items():
            print(f'{precision} {name}: {time:.2f} us', flush=True)
        for name, line in product_times(precision).items():
            print(f'{precision} library {name}: {line}', flush=True)
        for name, time in tower_times(library, precision).items():
            print(f'{precision} vision layer, {name}: {time:.2f} us', flush=True)


if __name__ == '__main__':
    main()
