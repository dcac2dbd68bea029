"""Our Hopper products against plain torch: both epilogues and precisions, parts of K, and ragged sizes."""

import pytest
import torch
import torch.nn.functional as F

from engine.reference import normal, poisoned, relative_error
from flashrt_ros.engine.operators import forward as operators
from flashrt_ros.engine.operators.fused_gemm import GELU, RAW, FusedProduct, Tiling
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.towers.vision_tilings import SO400M
from flashrt_ros.engine.weights.formats import round_to
from flashrt_ros.engine.weights.packing import pack_product

pytestmark = pytest.mark.gpu

TILINGS = [Tiling(64, 4, 1, 1), Tiling(96, 3, 3, 1), Tiling(144, 5, 4, 2), Tiling(208, 4, 2, 2)]
precisions = pytest.mark.parametrize('precision', ['bf16', 'fp8', 'int8'])

SHAPES = [(64, 96, 128), (256, 304, 144), (300, 1152, 1152), (100, 4304, 256), (512, 1152, 4304)]
"""Rows, columns, K; none of the tilings divides all of them."""


@pytest.fixture
def hopper(library):
    if library.gpu.capability != (9, 0):
        pytest.skip('needs a Hopper GPU')
    return library


def make(shape, precision, scale=0.02):
    rows, columns, depth = shape
    weight = normal(columns, depth, scale=depth**-0.5)
    product = Product(pack_product('p', weight, normal(columns), precision), 'p', torch.device('cuda'), scale)
    x = round_to(normal(rows, depth) * product.inverse_scale, product.dtype)
    raw = (x.double() @ product.weight.double().T).float()
    scaled = raw if product.channel_scale is None else raw * product.channel_scale
    return product, x, raw, scaled + product.bias


def check_raw(hopper, shape, tiling, precision):
    product, x, raw, _ = make(shape, precision)
    ahead = [make((1, 96, 48), precision)[0]]
    out = poisoned(tiling.parts, *raw.shape)
    FusedProduct(hopper, product, x, out, RAW, tiling, ahead=ahead)()
    assert relative_error(out.double().sum(0), raw) < 4e-3


def check_gelu(hopper, shape, tiling, precision):
    product, x, _, real = make(shape, precision)
    following = Product(pack_product('f', normal(16, 16), None, precision), 'f', torch.device('cuda'), 0.03)
    out = poisoned(*real.shape, dtype=following.dtype)
    FusedProduct(hopper, product, x, out, GELU, tiling, following=following)()
    error = relative_error(out.float() / following.inverse_scale, F.gelu(real, approximate='tanh'))
    assert error < (4e-3 if precision == 'bf16' else 3.5e-2)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('tiling', TILINGS, ids=str)
@precisions
def test_sums_over_parts_of_k(hopper, shape, tiling, precision):
    check_raw(hopper, shape, tiling, precision)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('tiling', [Tiling(64, 4, 1, 1), Tiling(144, 5), Tiling(208, 4)], ids=str)
@precisions
def test_gelu(hopper, shape, tiling, precision):
    check_gelu(hopper, shape, tiling, precision)


@pytest.mark.parametrize('rows', [256, 512, 768])
@precisions
def test_the_towers_own_products(hopper, rows, precision):
    sizes = {'qkv': (3456, 1152), 'o': (1152, 1152), 'up': (4304, 1152), 'down': (1152, 4304)}
    for part, tiling in SO400M['bf16' if precision == 'bf16' else 'fp8'][rows].items():
        check = check_gelu if part == 'up' else check_raw
        check(hopper, (rows, *sizes[part]), tiling, precision)


@pytest.mark.parametrize('tiling', TILINGS, ids=str)
@pytest.mark.parametrize('precision', ['fp8', 'int8'])
def test_repeated_launches_give_the_same_bits(hopper, tiling, precision):
    product, x, _, _ = make((512, 1152, 1152), precision)
    outs = [poisoned(tiling.parts, 512, 1152) for _ in range(20)]
    for out in outs:
        FusedProduct(hopper, product, x, out, RAW, tiling)()
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize(
    'shape',
    [(576, 2560, 2048), (968, 2560, 2048), (968, 2048, 2048), (320, 512, 2048), (768, 2048, 1152)],
    ids=str,
)
@pytest.mark.parametrize('precision', ['int8', 'fp8'])
@pytest.mark.parametrize('most_parts', [1, 2])
def test_products_without_a_library(hopper, shape, precision, most_parts, monkeypatch):
    monkeypatch.setattr(operators, 'MOST_PARTS', most_parts)
    product, x, raw, _ = make(shape, precision)
    ops, out = operators.Operators(hopper), poisoned(*raw.shape)
    assert ops.has_own(product)
    ops.multiply(product, x, out)
    assert relative_error(out, raw) < 4e-3
    memory = poisoned(3 * raw.numel())
    parts = ops.multiply_in_parts(product, x, memory)
    assert relative_error(parts.double().sum(0), raw) < 4e-3
    assert memory[parts.numel() :].isnan().all()
