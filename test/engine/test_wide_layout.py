"""Rows of weights in the order of accumulators: nothing is lost, and threads hold what the kernels store."""

from types import SimpleNamespace

import pytest
import torch

from flashrt_ros.engine.operators.wide_gemm import MOST_PARTS, choose, covers, part_count
from flashrt_ros.engine.weights.packing import pack_language
from flashrt_ros.engine.weights.wide_layout import gated_order, lane_order, pack_wide_language
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import GEMMA_2B, NANO_PI05, PI05

SPEC = NANO_PI05
LANGUAGE = SPEC.language


def held(order, lane):
    """What the tiles of `order` leave in one lane of four: its columns, tile by tile."""
    return order.view(-1, 8)[:, 2 * lane : 2 * lane + 2]


def test_a_lane_holds_eight_neighbouring_columns():
    order = lane_order(256)
    assert order.sort()[0].equal(torch.arange(256))
    for lane in range(4):
        starts = torch.arange(256 // 32) * 32 + lane * 8
        assert held(order, lane).reshape(-1, 8).equal(starts[:, None] + torch.arange(8))


def test_a_lane_holds_a_gate_and_its_up():
    width = 256
    order = gated_order(width)
    assert order.sort()[0].equal(torch.arange(2 * width))
    gates, ups = order.view(-1, 2, 8).unbind(1)
    assert ups.equal(gates + width)
    assert gates.flatten().equal(lane_order(width))


@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
def test_wide_weights_are_the_plain_ones_in_another_order(precision):
    tensors = random_tensors(SPEC, 3)
    plain, wide = (pack(tensors, SPEC, precision) for pack in (pack_language, pack_wide_language))
    gates = gated_order(LANGUAGE.mlp)
    renamed = {
        'gate_up': ('gated', gates, gates),
        'down': ('split_down', lane_order(LANGUAGE.width), slice(None)),
    }
    for name, tensor in plain.items():
        parts = name.split('.')
        if parts[-2] not in renamed:
            assert torch.equal(wide.pop(name).float(), tensor.float())
            continue
        parts[-2], rows, scales = renamed[parts[-2]]
        found = wide.pop('.'.join(parts))
        assert found.dtype == tensor.dtype
        assert found.is_contiguous()
        expected = tensor.float()[rows if parts[-1] == 'weight' else scales]
        assert torch.equal(found.float(), expected)
    assert not wide


def test_one_view_in_bf16_is_left_to_the_library():
    hopper, older = SimpleNamespace(capability=(9, 0)), SimpleNamespace(capability=(8, 9))
    assert covers(hopper, PI05, 'bf16', 2)
    assert covers(hopper, PI05, 'fp8', 1)
    assert not covers(hopper, PI05, 'bf16', 1)
    assert not covers(hopper, SPEC, 'fp8', 2)
    assert not covers(older, PI05, 'fp8', 2)


@pytest.mark.parametrize('blocks', [78, 114, 132])
def test_parts_of_k_occupy_the_gpu(blocks):
    for rows in range(64, 1089, 64):
        parts = part_count(rows, GEMMA_2B.width, blocks)
        assert 1 <= parts <= MOST_PARTS
        tiling = choose(rows, GEMMA_2B.width, parts, blocks)
        tiles = tiling.tiles(rows, GEMMA_2B.width)
        busy = tiles * parts / (-(-tiles * parts // blocks) * blocks)
        assert busy > 0.6 or parts == MOST_PARTS


def test_two_views_and_a_short_prompt_take_three_rows_of_tiles():
    assert choose(576, 2 * GEMMA_2B.mlp, 1, 132).warpgroups == 3
    assert choose(640, 2 * GEMMA_2B.mlp, 1, 132).warpgroups == 2
