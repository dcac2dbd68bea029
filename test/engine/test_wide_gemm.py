"""The prefill's own Hopper products against plain torch: odd row counts, poison around what they write."""

import pytest
import torch
import torch.nn.functional as F

from engine.reference import normal, poisoned, relative_error
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.operators.wide_gemm import KERNELS, TILINGS, Tiling, build, gated, split
from flashrt_ros.engine.weights.formats import BF16, E4M3, INT8, round_to
from flashrt_ros.engine.weights.packing import pack_product
from flashrt_ros.engine.weights.wide_layout import gated_order, lane_order

pytestmark = pytest.mark.gpu

VARIANTS = [*TILINGS, Tiling(2, stages=2)]
ROWS = [1, 64, 321, 576, 577, 700, 968]
TOLERANCE = {'bf16': 4e-3, 'fp8': 3.5e-2, 'int8': 3.5e-2}
"""Of the hidden layer, which is E4M3 behind integers too."""

precisions = pytest.mark.parametrize('precision', ['bf16', 'fp8', 'int8'])


@pytest.fixture(scope='module')
def hopper(library):
    if library.gpu.capability != (9, 0):
        pytest.skip('needs a Hopper GPU')
    library.compile(
        build(kernel, dtype, tiling)
        for kernel in KERNELS
        for dtype in (BF16, E4M3, INT8)
        for tiling in VARIANTS
    )
    return library


def make(rows, order, depth, precision):
    """A product with rows in `order`, an input, and what the product is in the plain order, real and raw."""
    weight = normal(len(order), depth, scale=depth**-0.5)
    packed = pack_product('p', weight, None, precision)
    plain = Product(packed, 'p', torch.device('cuda'), 0.02)
    x = round_to(normal(rows, depth) * plain.inverse_scale, plain.dtype)
    raw = (x.double() @ plain.weight.double().T).float()
    real = raw if plain.channel_scale is None else raw * plain.channel_scale
    order = order.cuda()
    ordered = {
        name: value.view(torch.int16 if precision == 'bf16' else torch.uint8)[order].view(value.dtype)
        if name.endswith('weight')
        else value[order]
        for name, value in packed.items()
    }
    return Product(ordered, 'p', torch.device('cuda'), 0.02), x, raw, real


def gated_case(rows, width, depth, precision):
    product, x, _, real = make(rows, gated_order(width), depth, precision)
    hidden = 'bf16' if precision == 'bf16' else 'fp8'
    following = Product(pack_product('f', normal(16, 16), None, hidden), 'f', torch.device('cuda'), 0.03)
    gate, up = real.chunk(2, 1)
    expected, largest = F.gelu(gate, approximate='tanh') * up, 448 / following.inverse_scale
    return product, x, following, expected if hidden == 'bf16' else expected.clamp(-largest, largest)


@pytest.mark.parametrize('rows', ROWS)
@pytest.mark.parametrize('tiling', VARIANTS, ids=str)
@precisions
def test_gate_up_and_gelu(hopper, rows, tiling, precision):
    for width, depth in ((288, 144), (2048, 2048), (4096, 272)):
        product, x, following, expected = gated_case(rows, width, depth, precision)
        out = poisoned(rows + 64, width, dtype=following.dtype)
        gated(hopper, x, product, out[:rows], following, tiling)
        found = out[:rows].float() / following.inverse_scale
        assert relative_error(found, expected) < TOLERANCE[precision], (width, depth)
        assert ((found - expected).abs() < 0.07 * expected.abs() + 0.02).all(), (width, depth)
        assert out[rows:].float().isnan().all()


def test_what_does_not_fit_into_e4m3_saturates(hopper):
    product, x, _, expected = gated_case(64, 256, 128, 'fp8')
    narrow = Product(pack_product('f', normal(16, 16), None, 'fp8'), 'f', torch.device('cuda'), 1e-4)
    out = poisoned(64, 256, dtype=product.dtype)
    gated(hopper, x, product, out, narrow)
    bounded = (expected / 1e-4).clamp(-448, 448)
    assert relative_error(out.float(), bounded) < TOLERANCE['fp8']
    assert out.float().abs().max() == 448


@pytest.mark.parametrize('rows', ROWS)
@pytest.mark.parametrize('tiling', VARIANTS, ids=str)
@precisions
def test_parts_of_k_add_up(hopper, rows, tiling, precision):
    for columns, depth, parts in ((480, 640, 2), (2048, 4096, 5), (2048, 16384, 3), (512, 144, 1)):
        product, x, raw, _ = make(rows, lane_order(columns), depth, precision)
        memory = poisoned(parts * rows + 64, columns)
        out = memory[: parts * rows].view(parts, rows, columns)
        split(hopper, x, product, out, tiling)
        assert relative_error(out.float().sum(0), raw) < 4e-3, (columns, depth, parts)
        assert memory[parts * rows :].isnan().all()


@precisions
def test_the_norm_adds_the_parts_to_the_residual(hopper, operators, precision):
    rows, columns, depth, parts = 321, 2048, 4096, 3
    product, x, _, real = make(rows, lane_order(columns), depth, precision)
    if product.channel_scale is not None:
        product.channel_scale[lane_order(columns).cuda()] = product.channel_scale.clone()
    out = poisoned(parts, rows, columns)
    operators.split_product(x, product, out)
    residual, normed = normal(rows, columns), poisoned(rows, columns)
    expected = residual + real
    operators.norm(residual, normed, None, delta=out, preceding=product)
    assert relative_error(residual, expected) < 4e-3
    assert relative_error(normed, F.rms_norm(expected, (columns,), eps=1e-6)) < 6e-3


@precisions
def test_repeated_launches_give_the_same_bits(hopper, precision):
    product, x, following, _ = gated_case(576, 2048, 2048, precision)
    outs = [poisoned(576, 2048, dtype=following.dtype) for _ in range(20)]
    for out in outs:
        gated(hopper, x, product, out, following)
    assert all(torch.equal(out.view(torch.uint8), outs[0].view(torch.uint8)) for out in outs)
    product, x, _, _ = make(576, lane_order(2048), 16384, precision)
    outs = [poisoned(3, 576, 2048) for _ in range(20)]
    for out in outs:
        split(hopper, x, product, out)
    assert all(torch.equal(out, outs[0]) for out in outs)
