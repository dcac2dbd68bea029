"""Rows of weights in the order of accumulators: nothing is lost, and threads hold what the kernels store."""

import pytest
import torch

from flashrt_ros.engine.packing import pack_language
from flashrt_ros.engine.wide_gemm import MOST_PARTS, RING, TILE_COLUMNS, TILE_ROWS, part_count
from flashrt_ros.engine.wide_layout import gated_order, lane_order, pack_wide_language
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import GEMMA_2B, NANO_PI05

SPEC = NANO_PI05
LANGUAGE = SPEC.language


def held(order, lane):
    """What the tiles of `order` leave in one lane of four: its columns, tile by tile."""
    return order.view(-1, 8)[:, 2 * lane : 2 * lane + 2]


@pytest.mark.parametrize('group', [8, 16])
def test_a_lane_holds_neighbouring_columns(group):
    order = lane_order(256, group)
    assert order.sort()[0].equal(torch.arange(256))
    for lane in range(4):
        blocks = held(order, lane).reshape(-1, group)
        starts = torch.arange(len(blocks)) * 4 * group + lane * group
        assert blocks.equal(starts[:, None] + torch.arange(group))


@pytest.mark.parametrize('fp8', [False, True])
def test_a_lane_holds_a_gate_and_its_up(fp8):
    width, group = 256, 16 if fp8 else 8
    order = gated_order(width, fp8)
    assert order.sort()[0].equal(torch.arange(2 * width))
    gates, ups = order.view(-1, 2, 8).unbind(1)
    assert ups.equal(gates + width)
    assert gates.flatten().equal(lane_order(width, group))


@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
def test_wide_weights_are_the_plain_ones_in_another_order(precision):
    tensors = random_tensors(SPEC, 3)
    plain, wide = (pack(tensors, SPEC, precision) for pack in (pack_language, pack_wide_language))
    gates = gated_order(LANGUAGE.mlp, precision == 'fp8')
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


def test_published_sizes_are_whole_tiles():
    for columns in (2 * GEMMA_2B.mlp, GEMMA_2B.width):
        assert columns % (TILE_COLUMNS * RING.across) == 0


@pytest.mark.parametrize('blocks', [78, 114, 132])
def test_parts_of_k_occupy_the_gpu(blocks):
    for rows in range(64, 1089, 64):
        tiles = -(-rows // TILE_ROWS) * GEMMA_2B.width // TILE_COLUMNS
        parts = part_count(rows, GEMMA_2B.width, blocks)
        assert 1 <= parts <= MOST_PARTS
        rounds = -(-tiles * parts // blocks)
        assert tiles * parts >= 0.6 * min(rounds * blocks, MOST_PARTS * tiles)
