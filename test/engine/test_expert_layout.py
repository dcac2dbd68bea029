"""The packed layout multiplies like the plain matrices, read the way wgmma reads it (PTX ISA)."""

import pytest
import torch

from engine.expert_reference import DTYPES, from_fragments, rounded, to_fragments
from flashrt_ros.engine.expert.buffers import ExpertShape, Prefix, check_shape
from flashrt_ros.engine.expert.layout import interleave_tiles, pack_slices, rotary_columns
from flashrt_ros.engine.weights.formats import quantise_rows
from flashrt_ros.errors import BackendError


def read_fragments(fragments, dtype, depth):
    """Operand A by its registers: row lane / 4 + 8 * (register % 2), K bytes 4 * (lane % 4) +
    16 * (register / 2)."""
    raw = fragments.view(depth * dtype.itemsize // 32, 4, 32, 4, 4)
    out = torch.empty(64, depth * dtype.itemsize, dtype=torch.uint8)
    for tile in range(4):
        for lane in range(32):
            for register in range(4):
                row = tile * 16 + lane // 4 + 8 * (register % 2)
                begin = lane % 4 * 4 + register // 2 * 16
                for step in range(len(raw)):
                    out[row, step * 32 + begin : step * 32 + begin + 4] = raw[step, tile, lane, register]
    return out.view(dtype).float()


def read_slice(packed, dtype, columns):
    """Operand B by core matrices of 8 columns and 16 bytes: halves of a step lie columns * 16 bytes apart."""
    raw = packed.view(-1, 2, columns // 8, 8, 16).permute(2, 3, 0, 1, 4)
    return raw.reshape(columns, -1).contiguous().view(dtype).float()


@pytest.mark.parametrize('order', ['linear', 'accumulator'])
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
def test_fragments_times_packed_weights_is_the_plain_product(precision, order):
    dtype = DTYPES[precision]
    x = rounded(torch.randn(64, 128), precision)
    weight = rounded(torch.randn(64, 128), precision)
    a = read_fragments(to_fragments(x, order), dtype, 128)
    for slice_, rows in zip(pack_slices(weight, 32, order), weight.float().split(32), strict=True):
        torch.testing.assert_close(
            a @ read_slice(slice_, dtype, 32).T, x.float() @ rows.T, rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize('order', ['linear', 'accumulator'])
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
def test_fragments_are_read_back(precision, order):
    x = rounded(torch.randn(64, 256), precision)
    assert torch.equal(from_fragments(to_fragments(x, order), DTYPES[precision], 256, order), x.float())


def test_rotary_partners_are_in_neighbouring_tiles():
    columns = rotary_columns(2, 256)
    assert sorted(columns.tolist()) == list(range(512))
    tiles = columns.view(-1, 2, 8)
    assert torch.equal(tiles[:, 1] - tiles[:, 0], torch.full((32, 8), 128))


def test_gates_and_ups_alternate_in_tiles_of_eight():
    mixed = interleave_tiles(torch.arange(32), torch.arange(32) + 100)
    assert mixed[:24].tolist() == [*range(8), *range(100, 108), *range(8, 16)]


def test_a_row_uses_the_whole_range_of_e4m3():
    weight = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 7.0, 100.0, 1e4])[:, None]
    values, scale = quantise_rows(weight, torch.float8_e4m3fn)
    assert torch.equal(values.float().abs().amax(1), torch.full((5,), 448.0))
    torch.testing.assert_close(values.float() * scale[:, None], weight, rtol=2**-4, atol=1e-30 + 0.02)


def test_what_the_kernels_have_no_room_for_is_refused():
    prefix = Prefix(torch.zeros(1, 64, 256), torch.zeros(1, 64, 256), torch.zeros(1))
    with pytest.raises(BackendError, match='horizon 65 gives 65 rows, the kernels take 1 to 64'):
        check_shape(ExpertShape(65, 64), 65, prefix)
    with pytest.raises(BackendError, match='a prefix of 128 tokens does not fit'):
        check_shape(ExpertShape(50, 128), 50, prefix)
