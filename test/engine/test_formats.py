"""Number formats: which a product takes, and what rounding to them costs."""

from dataclasses import replace

import pytest
import torch

from engine.reference import relative_error
from flashrt_ros.engine import builds
from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.operators import attention_sm90, fused_gemm, wide_gemm
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.operators.fused_gemm import WIDTHS, plain_tiling
from flashrt_ros.engine.towers.prefill import Prefill
from flashrt_ros.engine.towers.vision import VisionTower
from flashrt_ros.engine.weights.formats import (
    BF16,
    E4M3,
    HEADROOM,
    INT8,
    LARGEST,
    MOST_UNEVEN,
    TOWERS,
    product_dtype,
    quantise_rows,
    round_to,
    scale_ratio,
    tower_format,
    uneven_products,
)
from flashrt_ros.engine.weights.store import pack
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import PI0, PI05, GemmaSpec, PolicySpec, VisionSpec

from .test_towers import CPU, PADDED, VIEWS, RecordingLibrary


@pytest.mark.parametrize(
    ('spec', 'precision', 'integers', 'expected'),
    [
        (PI05, 'fp8', True, ('fp8', 'fp8', 'fp8')),
        (PI0, 'fp8', True, ('int8', 'int8', 'int8')),
        (PI0, 'fp8', False, ('fp8', 'fp8', 'bf16')),
        (PI0, 'bf16', True, ('bf16', 'bf16', 'bf16')),
    ],
    ids=str,
)
def test_formats_of_the_towers(spec, precision, integers, expected):
    assert tuple(tower_format(spec, precision, tower, integers) for tower in TOWERS) == expected


def test_what_gelu_times_up_enters_keeps_e4m3():
    assert product_dtype('language.3.down', 'int8') == product_dtype('expert.0.down', 'int8') == E4M3
    for name in ('vision.0.down', 'language.0.gate_up', 'expert.17.o', 'vision.projector'):
        assert product_dtype(name, 'int8') == INT8
        assert product_dtype(name, 'fp8') == E4M3
        assert product_dtype(name, 'bf16') == BF16


def test_products_with_outliers_keep_e4m3():
    crests = {'vision.0.up': 13.0, 'vision.1.qkv': 11.0, 'language.4.o': 40.0, 'vision.projector': 5.0}
    uneven = uneven_products(crests)
    assert uneven == {'vision.0.up', 'vision.0.down', 'language.4.o'}
    assert product_dtype('vision.0.down', 'int8', uneven) == E4M3
    assert product_dtype('vision.1.down', 'int8', uneven) == INT8
    assert [tower_format(PI0, 'fp8', tower, True, uneven) for tower in TOWERS] == ['int8'] * 3


@pytest.mark.parametrize(('part', 'expected'), [('unnormed_qkv', 'bf16'), ('qkv', 'int8'), ('down', 'int8')])
def test_outliers_anywhere_in_the_expert_take_it_to_bf16(part, expected):
    uneven = uneven_products({f'expert.7.{part}': 50.0})
    assert tower_format(PI0, 'fp8', 'expert', True, uneven) == expected
    assert tower_format(PI0, 'fp8', 'vision', True, uneven) == 'int8'


def test_rounding_of_an_input_as_uneven_as_that_is_no_better_in_integers():
    x = torch.randn(1, 1 << 16)
    x[0, 0] = MOST_UNEVEN * 1.2
    errors = {
        dtype: relative_error(round_to(x / s, dtype).float() * s, x)
        for dtype, s in ((E4M3, x.abs().max() * 2 / 448), (INT8, x.abs().max() / 127))
    }
    assert 0.8 * errors[E4M3] < errors[INT8] < 1.5 * errors[E4M3]


@pytest.mark.parametrize('dtype', [E4M3, INT8])
def test_the_largest_value_of_calibration_has_its_headroom(dtype):
    largest = 3.7
    calibrated = largest * HEADROOM[E4M3] / LARGEST[E4M3]
    assert largest / (calibrated * scale_ratio(dtype)) * HEADROOM[dtype] == pytest.approx(LARGEST[dtype])


def test_integers_round_evenly_spread_values_better_than_e4m3():
    x = torch.randn(64, 2048)
    errors = {}
    for dtype in (E4M3, INT8):
        values, scale = quantise_rows(x, dtype)
        assert values.float().abs().amax(1).eq(LARGEST[dtype]).all()
        errors[dtype] = relative_error(values.float() * scale[:, None], x)
    assert errors[INT8] < 0.01 < 0.025 < errors[E4M3]


def test_values_beyond_the_largest_saturate():
    x = torch.tensor([-1e6, -127.4, -0.5, 0.49, 1.5, 126.6, 1e6])
    assert round_to(x, INT8).tolist() == [-127, -127, 0, 0, 2, 127, 127]
    assert round_to(x, E4M3).float().abs().max() == 448


@pytest.mark.parametrize('rows', [256, 512, 576, 832, 1168])
@pytest.mark.parametrize('columns', [512, 2048, 2560])
@pytest.mark.parametrize('most_parts', [1, 2])
def test_a_plain_product_fits_the_gpu_at_once(rows, columns, most_parts):
    tiling, tiles = plain_tiling(rows, columns, 2048, 132, most_parts), -(-rows // 128)
    blocks = tiles * tiling.parts * -(-columns // tiling.columns)
    assert 1 <= tiling.parts <= most_parts
    assert tiling.columns in WIDTHS
    assert tiles % tiling.down == 0
    assert tiling.shared <= 227 << 10
    if tiles * -(-columns // WIDTHS[-1]) <= 132:
        assert blocks <= 132


@pytest.mark.parametrize('uneven', [(), ('vision.0.up', 'vision.0.down', 'language.0.qkv')])
def test_the_kernels_of_integers_are_compiled_beforehand(monkeypatch, uneven):
    for module in (attention_sm90, wide_gemm, fused_gemm):
        monkeypatch.setattr(module, 'tensor_map', lambda *_: None)
    monkeypatch.setattr(fused_gemm, 'plain_map', lambda *_: None)
    monkeypatch.setattr(attention_sm90, 'split_keys', lambda *_: 4)
    for name in ('covers', 'covers_prefill'):
        monkeypatch.setattr(builds, name, lambda *_: True)
    tower = GemmaSpec(2, 256, 512)
    spec = PolicySpec(
        'pi0', VisionSpec(layers=1), tower, replace(tower, layers=1, width=1024, mlp=4096), vocab=64
    )
    packed = pack(random_tensors(spec, 1), spec, 'fp8', fused=True, wide=True, uneven=frozenset(uneven))
    library, cache = RecordingLibrary((9, 0)), PrefixCache.allocate(spec, VIEWS, CPU)
    vision = VisionTower(Operators(library), spec.vision, packed, {}, VIEWS)
    vision.see(VIEWS)
    tokens = torch.zeros(PADDED, dtype=torch.int32)
    Prefill(Operators(library), spec, packed, {}, VIEWS, cache).run(
        vision.output(VIEWS), vision.projector, tokens
    )
    compiled = builds.policy_builds(library.gpu, spec, 'fp8', VIEWS, frozenset(uneven))
    assert library.asked <= {(file, tuple(sorted(constants.items()))) for file, constants in compiled}
    assert {'gated_gemm_sm90', 'gemm_sm90', 'norm'} <= {
        file for file, constants in library.asked if ('INT8', 1) in constants
    }
