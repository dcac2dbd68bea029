"""Products of the way back on Hopper: how they are divided, how weights are laid out, and the kernel."""

import pytest
import torch

from engine.plain_backward import PlainBackwardOperators
from engine.reference import normal, poisoned, relative_error, unwritten
from flashrt_ros.engine.operators.back_product import (
    MOST_SLOTS,
    empty_parts,
    expert_plans,
    launch_product,
    plan_product,
    row_box,
)
from flashrt_ros.engine.weights.back_layout import BOX, pack_back

gpu = pytest.mark.gpu

SIZES = {'down': (1024, 4096), 'gate_up': (8192, 1024), 'o': (1024, 2048), 'qkv': (2560, 1024)}
ROUNDED = 8e-3
"""Parts in bf16, added up: 2^-9 each."""


def widened(words):
    """The e4m3 in the upper bytes of both halves of 32-bit words, as the kernel moves bits: fp32 [.., 2]."""
    bits = (words >> 4 & 0x07F007F0) | (words & 0x80008000)
    return (torch.stack([bits & 0xFFFF, bits >> 16 & 0xFFFF], -1) << 16).int().view(torch.float32) * 2.0**120


def read_boxes(weight, eight_bits):
    """The weight as the threads of the kernel read it, fp32 [depth, columns]."""
    tiles, boxes = weight.columns // BOX, weight.depth // BOX
    if eight_bits:  # [column box, box, warp, pair of chunks, g, t, chunk, word]
        words = weight.boxes.view(torch.int32).view(tiles, boxes, 4, 2, 8, 4, 2, 2).long() & 0xFFFFFFFF
        low, high = widened(words), widened(words << 8 & 0xFFFFFFFF)
        values = torch.stack([low, high], -2)  # ..., eight columns, one of two
        values = values.permute(0, 1, 2, 3, 6, 4, 5, 7, 8, 9).flatten(3, 4)
    else:
        values = weight.boxes.view(torch.bfloat16).float().view(tiles, boxes, 4, 4, 8, 4, 2, 2, 2)
    # [column box, box, warp, chunk, g, t, upper half of K, eight columns, one of two]
    return values.permute(1, 3, 6, 5, 8, 0, 2, 7, 4).reshape(weight.depth, weight.columns)


@pytest.mark.parametrize('eight_bits', [False, True])
def test_boxes_hold_what_each_thread_multiplies(eight_bits):
    weight = torch.randn(192, 128)
    packed = pack_back(weight, eight_bits)
    if eight_bits:
        expected = (weight / packed.scale).to(torch.float8_e4m3fn).float()
        assert ((expected * packed.scale - weight).abs() <= weight.abs() / 16 + packed.scale * 2**-10).all()
    else:
        expected = weight.bfloat16().float()
    assert torch.equal(read_boxes(packed, eight_bits), expected)


@pytest.mark.parametrize(('depth', 'columns'), [*SIZES.values(), (64, 64), (128, 256), (576, 64)])
@pytest.mark.parametrize('whole', [False, True])
def test_plans_cover_the_depth(depth, columns, whole):
    plan = plan_product(depth, columns, whole=whole)
    assert plan.ranges * plan.steps * BOX == depth
    assert plan.parts * plan.cluster == plan.ranges
    assert max(plan.weight_slots, plan.row_slots) <= min(MOST_SLOTS, plan.steps)
    assert plan.parts == 1 or not whole


def test_published_sizes_occupy_the_gpu_and_leave_few_parts():
    plans = expert_plans(SIZES, dict.fromkeys(SIZES, (16, 8)))
    assert {plan.ranges * SIZES[name][1] // BOX for name, plan in plans.items()} == {128}
    assert {name: plan.parts for name, plan in plans.items()} == {'down': 1, 'gate_up': 4, 'o': 1, 'qkv': 2}


@gpu
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('eight_bits', [False, True])
@pytest.mark.parametrize('rows', [50, 64])
@pytest.mark.parametrize(
    ('name', 'slots'), [(n, s) for n in SIZES for s in ((16, 8), (3, 2))] + [('tiny', (1, 1))]
)
def test_product_kernel(library, name, slots, rows, eight_bits, groups):
    depth, columns = SIZES.get(name, (64, 64))
    plan = plan_product(
        depth, columns, whole=name in ('down', 'o'), slots=slots, early=name == 'o', groups=groups
    )
    gradient, weight = (normal(*sizes, dtype=torch.bfloat16) for sizes in ((64, depth), (depth, columns)))
    packed, out = pack_back(weight, eight_bits), poisoned(plan.parts, 64, columns)
    launch_product(library, plan, gradient, packed, out, rows)
    exact = weight.double()
    if eight_bits:
        exact = (weight.float() / packed.scale).to(torch.float8_e4m3fn).double() * packed.scale.double()
    found = out[:, : row_box(rows)].double().sum(0)
    assert relative_error(found, gradient[: row_box(rows)].double() @ exact) < ROUNDED
    assert row_box(rows) == 64 or unwritten(out[:, row_box(rows) :])


@gpu
@pytest.mark.parametrize('eight_bits', [False, True])
@pytest.mark.parametrize(('depth', 'columns', 'rows'), [(1024, 4096, 50), (1024, 4096, 64), (128, 256, 51)])
def test_gated_product_kernel(library, depth, columns, rows, eight_bits):
    plan = plan_product(depth, columns, whole=True, early=True)
    gradient, weight, x = (
        normal(*sizes, dtype=torch.bfloat16, scale=scale)
        for sizes, scale in (((64, depth), 1), ((depth, columns), depth**-0.5), ((64, 2 * columns), 2))
    )
    packed, out = pack_back(weight, eight_bits), poisoned(64, 2 * columns)
    exact = weight.double()
    if eight_bits:
        exact = (weight.float() / packed.scale).to(torch.float8_e4m3fn).double() * packed.scale.double()
    expected = torch.empty(64, 2 * columns, dtype=torch.float64, device='cuda')
    PlainBackwardOperators().gelu_gate(x.double(), (gradient.double() @ exact)[None], expected)
    launch_product(library, plan, gradient, packed, out, rows, x)
    count = row_box(rows)
    assert relative_error(out[:count], expected[:count]) < 2 * ROUNDED
    assert empty_parts(plan, columns, out.device).shape == (1, 64, columns)
