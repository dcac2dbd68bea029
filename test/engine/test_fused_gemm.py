"""Our Hopper products against plain torch: every epilogue, both precisions, split K, and ragged sizes."""

import pytest
import torch
import torch.nn.functional as F

from engine.reference import normal, poisoned, relative_error
from flashrt_ros.engine.fused_gemm import GELU, RAW, RESIDUAL, FusedProduct, Tiling
from flashrt_ros.engine.gemm import Product
from flashrt_ros.engine.packing import pack_product

pytestmark = pytest.mark.gpu

TILINGS = [
    Tiling(1, 64, 4),
    Tiling(1, 96, 6),
    Tiling(2, 128, 3),
    Tiling(2, 96, 4, split=2),
    Tiling(2, 96, 4, split=3),
    Tiling(1, 128, 5, split=4),
    Tiling(2, 128, 4, down=4),
    Tiling(2, 96, 4, across=2, down=4),
    Tiling(1, 64, 4, split=2, down=2, across=2),
]
SHAPES = [(64, 96, 128), (256, 304, 144), (512, 1152, 1152), (100, 4304, 256), (512, 1152, 4304)]
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
    x = (normal(rows, depth) * product.inverse_scale).to(product.dtype)
    weight = product.weight.float()
    raw = (x.double() @ weight.double().T).float()
    scaled = raw if product.channel_scale is None else raw * product.channel_scale
    return product, x, raw, scaled + product.bias


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('tiling', TILINGS, ids=str)
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
def test_each_epilogue(hopper, shape, tiling, precision):
    product, x, raw, real = make(shape, precision)
    following = Product(pack_product('f', normal(16, 16), None, precision), 'f', torch.device('cuda'), 0.03)
    rows, columns, _ = shape

    out = poisoned(rows, columns)
    FusedProduct(hopper, product, x, out, RAW, tiling)()
    assert relative_error(out, raw) < 4e-3

    out = poisoned(rows, columns, dtype=following.dtype)
    FusedProduct(hopper, product, x, out, GELU, tiling, following)()
    expected = F.gelu(real, approximate='tanh')
    assert relative_error(out.float() / following.inverse_scale, expected) < (
        4e-3 if precision == 'bf16' else 3.5e-2
    )

    residual = normal(rows, columns)
    expected = residual + real
    FusedProduct(hopper, product, x, residual, RESIDUAL, tiling)()
    assert relative_error(residual, expected) < (1e-5 if precision == 'bf16' else 1e-3)


@pytest.mark.parametrize('tiling', TILINGS, ids=str)
def test_repeated_launches_give_the_same_bits(hopper, tiling):
    product, x, _, _ = make((512, 1152, 1152), 'fp8')
    outs = [poisoned(512, 1152) for _ in range(20)]
    for out in outs:
        FusedProduct(hopper, product, x, out, RAW, tiling)()
    assert all(torch.equal(out, outs[0]) for out in outs)
