"""Each kernel against plain torch on fresh random inputs, with poisoned outputs and odd sizes."""

import math

import pytest
import torch
import torch.nn.functional as F

from engine.reference import normal, poisoned, relative_error, unwritten
from flashrt_ros.engine.buffers import rotary_table
from flashrt_ros.engine.operators.forward import Modulation
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.weights.packing import pack_product

pytestmark = pytest.mark.gpu

BF16, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
DTYPES = [BF16, FP8, INT8]
PRECISIONS = {BF16: 'bf16', FP8: 'fp8', INT8: 'int8'}
TOLERANCE = {BF16: 4e-3, FP8: 3.5e-2}
"""Rounding to 8 and to 4 significant bits gives relative errors of about 2e-3 and 2.6e-2."""
FEW_TOLERANCE = {BF16: 4e-3, FP8: 6.5e-2}
"""A handful of values may all err by half a step, 2^-4 of a value in E4M3."""


def product(width: int, precision: str, scale: float = 1.0, bias: bool = True) -> Product:
    """A product with `width` outputs; only its vectors matter to the operator under test."""
    packed = pack_product('p', normal(width, 64), normal(width) if bias else None, precision)
    return Product(packed, 'p', torch.device('cuda'), scale)


def follower(dtype: torch.dtype, scale: float = 0.1) -> Product:
    return product(16, PRECISIONS[dtype], scale)


def real(raw: torch.Tensor, source: Product) -> torch.Tensor:
    x = raw.float()
    if source.channel_scale is not None:
        x = x * source.channel_scale
    return x if source.bias is None else x + source.bias


def error(out: torch.Tensor, following: Product, expected: torch.Tensor) -> float:
    """Relative error of what was left for `following`, over what rounding to its format makes: at most 1.
    Integers saturate, and are wrong by a step over the root of 12."""
    step, found, few = 1 / following.inverse_scale, out.float() / following.inverse_scale, out.numel() <= 1000
    if out.dtype != INT8:
        return relative_error(found, expected) / (FEW_TOLERANCE if few else TOLERANCE)[out.dtype]
    expected = expected.clamp(-128 * step, 127 * step)
    steps = (0.5 if few else 0.32) * step / expected.square().mean().sqrt().item()
    return relative_error(found, expected) / (steps + 4e-3)


@pytest.mark.parametrize('out_dtype', DTYPES)
@pytest.mark.parametrize(('rows', 'width'), [(1, 128), (37, 1024), (562, 2048)])
def test_rms_norm_after_gated_residual_with_modulation(operators, rows, width, out_dtype):
    residual, delta, before = normal(rows, width), normal(rows, width, dtype=BF16), product(width, 'fp8', 0.3)
    modulation, gate, after = Modulation(*normal(3, width)), normal(width), follower(out_dtype)
    expected = residual + real(delta, before) * gate
    normed = F.rms_norm(expected, (width,), eps=1e-6) * (1 + modulation.scale) + modulation.shift
    out = poisoned(rows, width, dtype=out_dtype)
    operators.norm(residual, out, after, delta=delta, preceding=before, gate=gate, modulation=modulation)
    assert relative_error(residual, expected) < 1e-6
    assert error(out, after, normed) < 1


@pytest.mark.parametrize('out_dtype', DTYPES)
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
@pytest.mark.parametrize('parts', [1, 4])
@pytest.mark.parametrize(('rows', 'width'), [(1, 8), (3, 144), (37, 400), (512, 1152)])
def test_layer_norm_after_sums(operators, rows, width, parts, precision, out_dtype):
    residual, sums = normal(rows, width) + 5, normal(parts, rows, width, dtype=BF16)
    before, after = product(width, precision, 0.3), follower(out_dtype)
    expected = residual + real(sums.float().sum(0), before)
    out = poisoned(rows, width, dtype=out_dtype)
    operators.layer_norm(residual, out, after, sums, preceding=before)
    normed = F.layer_norm(expected, (width,), eps=1e-6)
    assert relative_error(residual, expected) < 1e-6
    assert error(out, after, normed) < 1


@pytest.mark.parametrize(('rows', 'width'), [(3, 144), (512, 1152)])
def test_layer_norm_from_a_start_table(operators, rows, width):
    residual, start = poisoned(rows, width, dtype=torch.float32), normal(2, width) + 3
    sums, after, out = normal(1, rows, width, dtype=BF16), follower(BF16), poisoned(rows, width)
    expected = start[torch.arange(rows, device='cuda') % 2] + sums[0].float()
    operators.layer_norm(residual, out, after, sums, start=start)
    assert relative_error(residual, expected) < 1e-6
    assert relative_error(out, F.layer_norm(expected, (width,), eps=1e-6)) < TOLERANCE[BF16]


@pytest.mark.parametrize('parts', [1, 3, 5])
def test_norm_adds_the_parts_of_a_product(operators, parts):
    rows, width = 37, 256
    delta, before = normal(parts, rows, width, dtype=BF16), product(width, 'fp8', 0.3)
    residual, out = normal(rows, width), poisoned(rows, width)
    expected = residual + real(delta.float().sum(0), before)
    operators.norm(residual, out, None, delta=delta, preceding=before)
    assert relative_error(residual, expected) < 1e-6
    assert relative_error(out, F.rms_norm(expected, (width,), eps=1e-6)) < TOLERANCE[BF16]


def test_norm_alone_leaves_the_residual(operators):
    residual = normal(5, 256)
    before, out = residual.clone(), poisoned(5, 256)
    operators.norm(residual, out, None)
    assert torch.equal(residual, before)
    assert relative_error(out, F.rms_norm(before, (256,), eps=1e-6)) < TOLERANCE[BF16]


@pytest.mark.parametrize('out_dtype', DTYPES)
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
@pytest.mark.parametrize(('rows', 'width'), [(1, 8), (77, 304), (512, 4304)])
def test_bias_gelu(operators, rows, width, precision, out_dtype):
    x, before, after = normal(rows, width, dtype=BF16), product(width, precision, 0.3), follower(out_dtype)
    out = poisoned(rows, width, dtype=out_dtype)
    operators.bias_gelu(x, before, out, after)
    expected = F.gelu(real(x, before), approximate='tanh')
    assert error(out, after, expected) < 1


@pytest.mark.parametrize('out_dtype', DTYPES)
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
@pytest.mark.parametrize(('rows', 'width'), [(1, 256), (50, 4096), (562, 16384)])
def test_gelu_gate(operators, rows, width, precision, out_dtype):
    x, before = normal(rows, 2 * width, dtype=BF16), product(2 * width, precision, 20.0, bias=False)
    after = follower(out_dtype)
    out = poisoned(rows, width, dtype=out_dtype)
    operators.gelu_gate(x, before, out, after)
    gate, up = real(x, before).chunk(2, 1)
    expected = F.gelu(gate, approximate='tanh') * up
    assert error(out, after, expected) < 1


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('offset', [None, 0, 77])
@pytest.mark.parametrize(('rows', 'heads', 'dim'), [(1, 8, 64), (51, 8, 256), (562, 0, 256)])
def test_rope_writes_queries_and_cache_rows(operators, rows, heads, dim, offset, parts):
    width = (heads + 2) * dim
    qkv, before = normal(parts, rows, width, dtype=BF16), product(width, 'fp8', 0.3, bias=False)
    table = rotary_table(700, dim, torch.device('cuda'))
    keys, values = poisoned(700, dim), poisoned(700, dim)
    queries = poisoned(rows, heads * dim) if heads else None
    length = None if offset is None else torch.tensor([offset], dtype=torch.int32, device='cuda')
    operators.rope(qkv if parts > 1 else qkv[0], before, table, length, queries, keys, values)

    first = offset or 0
    x = real(qkv.float().sum(0), before).unflatten(1, (heads + 2, dim))
    cos, sin = table[first : first + rows].unbind(-1)
    a, b = x.chunk(2, -1)
    rotated = torch.cat([a * cos[:, None] - b * sin[:, None], b * cos[:, None] + a * sin[:, None]], -1)
    written = slice(first, first + rows)
    assert relative_error(keys[written], rotated[:, heads]) < TOLERANCE[BF16]
    assert relative_error(values[written], x[:, heads + 1]) < TOLERANCE[BF16]
    if heads:
        assert relative_error(queries, rotated[:, :heads].flatten(1)) < TOLERANCE[BF16]
    assert keys[:first].isnan().all()
    assert values[first + rows :].isnan().all()


@pytest.mark.parametrize('out_dtype', DTYPES)
@pytest.mark.parametrize('first_sees', [-1, 1])
@pytest.mark.parametrize(
    ('rows', 'length', 'appended', 'dim', 'capacity'),
    [
        (1, 1, 1, 64, 704),
        (77, 31, 40, 64, 704),
        (562, 562, 0, 64, 704),
        (1, 1, 1, 256, 704),
        (51, 562, 51, 256, 704),
        (77, 31, 40, 256, 128),
        (320, 300, 0, 256, 320),
        (562, 562, 0, 256, 704),
        (576, 562, 0, 256, 576),
        (576, 5, 3, 256, 576),
        (640, 611, 0, 256, 640),
        (968, 968, 0, 256, 1024),
        (2200, 777, 0, 256, 1152),
    ],
)
def test_gemma_attention(operators, rows, length, appended, dim, capacity, first_sees, out_dtype):
    if first_sees > appended:
        pytest.skip('the first row sees at most what is there')
    heads = 8
    queries, keys, values = (
        normal(n, w, dtype=BF16) for n, w in ((rows, heads * dim), (capacity, dim), (capacity, dim))
    )
    on_device, after = torch.tensor([length], dtype=torch.int32, device='cuda'), follower(out_dtype)
    out = poisoned(rows + 1, heads * dim, dtype=out_dtype)
    operators.attention(
        queries, keys, values, on_device, out, after, appended=appended, first_sees=first_sees
    )
    total = length + appended
    mask = torch.ones(rows, total, dtype=torch.bool, device='cuda')
    if first_sees >= 0:
        mask[0, length + first_sees :] = False
    q = queries.float().unflatten(1, (heads, dim)).transpose(0, 1)
    logits = q @ keys[:total].float().T / math.sqrt(dim)
    weights = torch.softmax(logits.masked_fill(~mask, -math.inf), -1)
    expected = (weights @ values[:total].float()).transpose(0, 1).flatten(1)
    assert error(out[:rows], after, expected) < 1.5
    assert unwritten(out[rows:])


@pytest.mark.parametrize(('rows', 'length', 'dim'), [(1, 3, 64), (51, 562, 256), (40, 20, 256)])
def test_gemma_attention_leaves_its_sums(operators, rows, length, dim):
    heads, total = 8, length + rows
    queries, keys, values = (
        normal(n, w, dtype=BF16) for n, w in ((rows, heads * dim), (640, dim), (640, dim))
    )
    on_device, after = torch.tensor([length], dtype=torch.int32, device='cuda'), follower(BF16)
    out, sums = poisoned(rows, heads * dim), poisoned(rows + 1, heads, dtype=torch.float32)
    given = queries, keys, values, on_device, out, after
    operators.attention(*given, appended=rows, first_sees=1, log_sums=sums)
    mask = torch.ones(rows, 1, total, dtype=torch.bool, device='cuda')
    mask[0, :, length + 1 :] = False
    logits = queries.double().unflatten(1, (heads, dim)) @ keys[:total].double().T / math.sqrt(dim)
    logits = logits.masked_fill(~mask, -math.inf)
    assert relative_error(sums[:rows], logits.logsumexp(-1) / math.log(2)) < 1e-5
    assert error(out, after, (torch.softmax(logits, -1) @ values[:total].double()).flatten(1).float()) < 1.5
    assert unwritten(sums[rows:])


@pytest.mark.parametrize('out_dtype', DTYPES)
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
@pytest.mark.parametrize(
    ('views', 'heads', 'dim'), [(1, 2, 72), (2, 16, 72), (3, 4, 64), (2, 3, 80), (1, 2, 96)]
)
def test_vision_attention_stays_inside_each_image(operators, views, heads, dim, precision, out_dtype):
    tokens, width = 256, heads * dim
    qkv, before = normal(views * tokens, 3 * width, dtype=BF16), product(3 * width, precision, 0.3)
    after, out = follower(out_dtype), poisoned(views * tokens, width, dtype=out_dtype)
    operators.vision_attention(qkv, before, tokens, heads, out, after)
    q, k, v = real(qkv, before).view(views, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(views * tokens, width)
    assert error(out, after, expected) < 2.5


def test_patches_are_those_of_a_convolution(operators):
    pixels = torch.randint(0, 256, (2, 3, 224, 224), device='cuda').float() / 255 * 2 - 1
    expected = F.pad(F.unfold(pixels, 14, stride=14).transpose(1, 2).flatten(0, 1), (0, 4))
    out = poisoned(512, 592)
    operators.patches(pixels, 14, out)
    assert relative_error(out.float() / 255, expected) < 1e-6


@pytest.mark.parametrize('out_dtype', DTYPES)
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
@pytest.mark.parametrize('width', [256, 2048])
def test_prefix_rows_are_images_then_prompt(operators, width, precision, out_dtype):
    image_rows, text_rows, vocabulary = 256, 37, 1000
    projected, table = normal(image_rows, width, dtype=BF16), normal(vocabulary, width, dtype=BF16)
    tokens = torch.randint(0, vocabulary, (text_rows,), dtype=torch.int32, device='cuda')
    projector, after = product(width, precision, 0.3), follower(out_dtype)
    residual, out = (poisoned(image_rows + text_rows, width, dtype=t) for t in (torch.float32, out_dtype))
    operators.prefix_embedding(projected, projector, tokens, table, residual, out, after)
    expected = torch.cat([real(projected, projector), table[tokens.long()].float() * math.sqrt(width)])
    assert relative_error(residual, expected) < 1e-6
    assert error(out, after, F.rms_norm(expected, (width,), eps=1e-6)) < 1
