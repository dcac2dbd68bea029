"""Packed weights compute what the plain layers compute, and caches and calibrations of other weights are
refused."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from flashrt_ros.engine.calibration.ranges import Scales
from flashrt_ros.engine.calibration.scales import FILE, store, stored
from flashrt_ros.engine.weights.formats import quantise_rows
from flashrt_ros.engine.weights.packing import pack_expert, pack_language, pack_product, pack_vision
from flashrt_ros.engine.weights.store import fingerprint, load_packed, pack
from flashrt_ros.errors import BackendError, CheckpointError
from flashrt_ros.models.random import random_tensors, write_random_checkpoint
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.models.tensors import EXPERT, LANGUAGE, VISION

SPEC = NANO_PI05


@pytest.fixture(scope='module')
def tensors():
    return dict(random_tensors(SPEC, 3))


def test_layer_norm_is_folded_into_the_product_behind_it(tensors):
    packed = pack_vision(tensors, SPEC, 'bf16')
    x, layer = torch.randn(5, SPEC.vision.width), f'{VISION}encoder.layers.1.'
    normed = F.layer_norm(
        x,
        (SPEC.vision.width,),
        tensors[layer + 'layer_norm1.weight'],
        tensors[layer + 'layer_norm1.bias'],
        1e-6,
    )
    expected = torch.cat(
        [
            F.linear(
                normed,
                tensors[f'{layer}self_attn.{c}_proj.weight'],
                tensors[f'{layer}self_attn.{c}_proj.bias'],
            )
            for c in 'qkv'
        ],
        1,
    )
    plain = F.layer_norm(x, (SPEC.vision.width,), eps=1e-6)
    found = F.linear(plain, packed['vision.1.qkv.weight'].float(), packed['vision.1.qkv.bias'])
    assert (found - expected).norm() / expected.norm() < 4e-3


def test_the_patch_embedding_takes_integer_pixels(tensors):
    packed, name = pack_vision(tensors, SPEC, 'bf16'), VISION + 'embeddings.'
    pixels = torch.randint(0, 256, (1, 3, 224, 224)).float()
    patches = F.pad(F.unfold(2 * pixels - 255, 14, stride=14)[0].T, (0, 4))
    found = patches @ packed['vision.patch.weight'].float().T + packed['vision.start']
    convolved = F.conv2d(
        pixels / 255 * 2 - 1,
        tensors[name + 'patch_embedding.weight'],
        tensors[name + 'patch_embedding.bias'],
        stride=14,
    )
    expected = convolved.flatten(2)[0].T + tensors[name + 'position_embedding.weight']
    assert (found - expected).norm() / expected.norm() < 4e-3


def test_gemma_norm_weights_are_folded_and_the_last_layer_keeps_keys_and_values_only(tensors):
    packed = pack_language(tensors, SPEC, 'bf16')
    last = SPEC.language.layers - 1
    assert not any(name.startswith(f'language.{last}.q') for name in packed)
    layer = f'{LANGUAGE}layers.{last}.'
    weight = torch.cat([tensors[f'{layer}self_attn.{c}_proj.weight'] for c in 'kv'])
    expected = weight * (1 + tensors[layer + 'input_layernorm.weight'])
    assert torch.equal(packed[f'language.{last}.kv.weight'], expected.to(torch.bfloat16))


def test_modulated_norms_are_not_folded(tensors):
    packed = pack_expert(tensors, SPEC, 'bf16')
    expected = tensors[f'{EXPERT}layers.0.mlp.down_proj.weight'].to(torch.bfloat16)
    assert torch.equal(packed['expert.0.down.weight'], expected)


@pytest.mark.parametrize(('family', 'expected'), [('pi05', torch.float8_e4m3fn), ('pi0', torch.bfloat16)])
def test_the_expert_of_pi0_stays_in_bf16(family, expected):
    spec = replace(SPEC, family=family)
    packed = pack(random_tensors(spec, 3), spec, 'fp8')
    assert packed['expert.0.qkv.weight'].dtype == expected
    assert packed['language.0.qkv.weight'].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize('spread', [1e-6, 1.0, 1e4])
def test_each_output_channel_has_its_own_scale(spread):
    weight = torch.randn(64, 96) * torch.logspace(-3, 3, 64)[:, None] * spread
    values, scale = quantise_rows(weight, torch.float8_e4m3fn)
    error = (values.float() * scale[:, None] - weight).norm(dim=1) / weight.norm(dim=1)
    assert error.max() < 0.04
    assert values.float().abs().amax(1).eq(448).all()


def test_a_zero_channel_stays_zero():
    packed = pack_product('p', torch.zeros(16, 32), None, 'fp8')
    assert packed['p.weight'].float().eq(0).all()
    assert packed['p.channel_scale'].isfinite().all()


def test_the_fingerprint_follows_the_weights(tmp_path):
    one = write_random_checkpoint(tmp_path / 'one', SPEC, seed=1) / 'model.safetensors'
    two = write_random_checkpoint(tmp_path / 'two', SPEC, seed=2) / 'model.safetensors'
    copy = tmp_path / 'copy.safetensors'
    copy.write_bytes(one.read_bytes())
    assert fingerprint(one) == fingerprint(copy) != fingerprint(two)
    content = bytearray(one.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert fingerprint(copy) != fingerprint(one)


def test_scales_are_read_back(tmp_path):
    store(tmp_path, 'key', Scales({'expert.0.o': 0.25}, {'expert.0.o': 4.5}), 8)
    assert stored(tmp_path, 'key') == {'expert.0.o': 0.25}
    assert stored(tmp_path, 'key').crests == {'expert.0.o': 4.5}


def test_missing_scales_are_asked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r'needs activation scales.*flashrt calibrate BAG'):
        stored(tmp_path, 'key')


def test_scales_of_other_weights_are_refused(tmp_path):
    store(tmp_path, 'key', {'expert.0.o': 0.25}, 8)
    with pytest.raises(CheckpointError, match='belongs to other weights'):
        stored(tmp_path, 'other')


def test_scales_of_another_version_are_refused(tmp_path):
    path = store(tmp_path, 'key', {'expert.0.o': 0.25}, 8)
    path.write_text(json.dumps(json.loads(path.read_text()) | {'version': 2}))
    with pytest.raises(CheckpointError, match='has version 2, not 1'):
        stored(tmp_path, 'key')


@pytest.mark.parametrize(
    'content', ['', '[]', '{"checkpoint": "key"}', '{"checkpoint": "key", "scales": {"a": "x"}}']
)
def test_a_damaged_calibration_is_refused(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CheckpointError, match='cannot be read'):
        stored(tmp_path, 'key')


@pytest.mark.parametrize('scale', [0.0, -1.0, float('nan'), float('inf')])
def test_an_impossible_scale_is_refused(tmp_path, scale):
    (tmp_path / FILE).write_text(json.dumps({'checkpoint': 'key', 'scales': {'a': scale}}))
    with pytest.raises(CheckpointError, match='not positive and finite'):
        stored(tmp_path, 'key')


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(BackendError, match='cannot be written'):
        store(tmp_path / 'absent', 'key', {}, 1)


class CpuAsGpu:
    """What `load_packed` asks of a GPU, on a machine without one."""

    device, capability = torch.device('cpu'), (8, 9)


class TestPackedCache:
    @pytest.fixture
    def load(self, tensors, tmp_path):
        self.packings = 0

        def give():
            self.packings += 1
            return tensors

        return lambda key='key', precision='bf16': load_packed(
            key, SPEC, precision, 2, CpuAsGpu(), give, tmp_path
        )

    def test_weights_are_packed_once(self, load):
        first, second = load(), load()
        assert self.packings == 1
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_other_weights_and_precisions_have_entries_of_their_own(self, load):
        load(), load('other'), load(precision='fp8')
        assert self.packings == 3

    @pytest.mark.parametrize('keep', [0, 7, 1000, 100_000])
    def test_a_cut_entry_is_made_again(self, load, tmp_path, keep):
        whole = load()
        (entry,) = tmp_path.glob('weights/*.safetensors')
        entry.write_bytes(entry.read_bytes()[:keep])
        again = load()
        assert self.packings == 2
        assert all(torch.equal(again[name], whole[name]) for name in whole)
        assert load().keys() == whole.keys()
        assert self.packings == 2
