"""The CPU backend as nodes and evaluation use it, and the two formats as one policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flashrt_ros.errors import BackendError, ObservationError
from flashrt_ros.models.backend import check_finite, load
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.pi import PiModel, canonical_name, load_model, time_embedding
from flashrt_ros.models.random import random_tensors, write_random_checkpoint
from flashrt_ros.models.spec import NANO_PI05, PI0, PI05
from flashrt_ros.models.tensors import expected_tensors, parameter_count, spec_from_shapes, stays_fp32
from flashrt_ros.policy import STAGES, Observation, PolicyInfo, PolicyOptions, load_policy
from models.conftest import TINY, Make

LAYOUTS = [(layout, family) for layout in ('openpi', 'lerobot') for family in ('pi0', 'pi05')]
NOISE = np.random.default_rng(3).normal(size=(12, 32)).astype(np.float32)


@pytest.mark.parametrize(('layout', 'family'), LAYOUTS)
def test_policy_says_what_it_is_and_infers(
    layout: str, family: str, checkpoint: Make, observation: Observation
) -> None:
    directory = checkpoint(layout, family)
    policy = load_policy(directory)
    assert policy.info == PolicyInfo(
        name=directory.name,
        family=family,
        views=('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb'),
        state_dim=6,
        action_dim=6,
        horizon=12,
        steps=10,
        device='cpu',
        precision='fp32',
        parameters=parameter_count(open_checkpoint(directory).spec),
        guidance_refusals=policy.info.guidance_refusals,
    )
    assert policy.info.guidance_refusals['identity'] == policy.info.guidance_refusals['exact'] == ''
    assert policy.info.guidance_refusals['prefix'] != ''
    prediction = policy.infer(observation)
    assert prediction.actions.shape == (12, 6)
    assert prediction.actions.dtype == np.float32
    assert tuple(prediction.timings) == STAGES
    assert min(prediction.timings.values()) > 0
    policy.close()


@pytest.mark.parametrize(('layout', 'family'), LAYOUTS)
@pytest.mark.parametrize('change', ['prompt', 'state', 'image', 'view', 'noise'])
def test_every_input_matters(
    layout: str, family: str, change: str, checkpoint: Make, observation: Observation
) -> None:
    policy = load(checkpoint(layout, family), PolicyOptions())
    first, *rest = observation.images.items()
    changed = {
        'prompt': replace(observation, prompt='close the drawer'),
        'state': replace(observation, state=observation.state + 0.3),
        'image': replace(observation, images=dict([(first[0], 255 - first[1]), *rest])),
        'view': replace(observation, images=dict([first])),
        'noise': observation,
    }[change]
    noise = NOISE + 0.1 if change == 'noise' else NOISE
    before = policy.infer(observation, NOISE).actions
    assert np.abs(policy.infer(changed, noise).actions - before).max() > 1e-3
    np.testing.assert_array_equal(policy.infer(observation, NOISE).actions, before)


def test_plain_prompt_of_pi05_does_not_see_the_state(checkpoint: Make, observation: Observation) -> None:
    policy = load(checkpoint(), PolicyOptions(prompt_form='plain'))
    moved = replace(observation, state=observation.state + 0.3)
    np.testing.assert_array_equal(
        policy.infer(observation, NOISE).actions, policy.infer(moved, NOISE).actions
    )


@pytest.mark.parametrize('family', ['pi0', 'pi05'])
def test_same_weights_in_both_formats_give_the_same_network_output(
    family: str, checkpoint: Make, observation: Observation
) -> None:
    outputs = []
    for layout in ('openpi', 'lerobot'):
        found = open_checkpoint(checkpoint(layout, family))
        assert found.format == layout
        model = load_model(found.spec, found.tensors, torch.float32)
        images = found.processing.images(observation)
        outputs.append(run(model, images, torch.tensor([[2, 5, 9]]), torch.ones(1, 32)))
    error = (outputs[0] - outputs[1]).norm() / outputs[0].norm()
    assert 0 < error < 0.2, 'the two differ by their resizing only'


@torch.inference_mode()
def run(model: PiModel, images: torch.Tensor, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    prefix = model.prefill(model.see(images), tokens, state)
    return model.denoise(torch.from_numpy(NOISE)[None], prefix, model.flow_table(10))


def rename_to_old_layout(name: str) -> str:
    """Names that lerobot used up to 0.3."""
    paligemma = 'model.paligemma_with_expert.paligemma.'
    return (
        name.replace(paligemma + 'model.language_model.', paligemma + 'language_model.model.')
        .replace(paligemma + 'lm_head', paligemma + 'language_model.lm_head')
        .replace(paligemma + 'model.', paligemma)
    )


@pytest.mark.parametrize('family', ['pi0', 'pi05'])
def test_old_lerobot_names_are_read(family: str, checkpoint: Make) -> None:
    directory = checkpoint('lerobot', family)
    expected = dict(open_checkpoint(directory).tensors)
    path = directory / 'model.safetensors'
    old = {rename_to_old_layout(name): tensor for name, tensor in load_file(path).items()}
    assert 'model.paligemma_with_expert.paligemma.language_model.lm_head.weight' in old
    old['normalize_inputs.buffer_observation_state.mean'] = torch.zeros(6)
    save_file(old, path)
    actual = open_checkpoint(directory).tensors
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_embed_tokens_are_preferred_and_unused_heads_skipped(checkpoint: Make) -> None:
    directory = checkpoint('openpi')
    path = directory / 'model.safetensors'
    tensors = load_file(path)
    own = torch.randn(1200, 64)
    tensors['paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight'] = own
    tensors['paligemma_with_expert.gemma_expert.lm_head.weight'] = torch.randn(1200, 32)
    save_file(tensors, path)
    found = open_checkpoint(directory).tensors
    assert torch.equal(found['paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight'], own)
    assert found.keys() == expected_tensors(TINY['pi05']).keys()


class TestBfloat16:
    @pytest.mark.parametrize('family', ['pi0', 'pi05'])
    def test_it_is_close_to_fp32(self, family: str, checkpoint: Make, observation: Observation) -> None:
        directory = checkpoint('openpi', family)
        exact = load(directory, PolicyOptions()).infer(observation, NOISE).actions
        rounded = load(directory, PolicyOptions(precision='bf16')).infer(observation, NOISE).actions
        error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert 1e-5 < error < 0.05

    def test_openpi_keeps_these_in_fp32(self) -> None:
        """3 of SigLIP, 5 norms of each Gemma tower (the expert has biases), 4 heads with bias."""
        kept = {name for name in expected_tensors(TINY['pi05']) if stays_fp32(name)}
        assert len(kept) == 3 + 5 + 2 * 5 + 2 * 4
        assert not any('mlp.' in name or '_proj' in name for name in kept if name.startswith('paligemma'))
        assert not any('vision_tower' in name for name in kept if 'embeddings' not in name)

    @pytest.mark.parametrize('family', ['pi0', 'pi05'])
    def test_weights_are_held_as_openpi_holds_them(self, family: str) -> None:
        model = load_model(TINY[family], random_tensors(TINY[family]), torch.bfloat16)
        for name, parameter in model.named_parameters():
            expected = torch.float32 if stays_fp32(canonical_name(name)) else torch.bfloat16
            assert parameter.dtype == expected, name


class TestSizes:
    def test_published_sizes(self) -> None:
        """Sums of the tensors of the published files, without the unused expert lm_head."""
        assert parameter_count(PI05) == 3_353_433_872
        assert parameter_count(PI0) == 3_238_048_528

    @pytest.mark.parametrize('spec', [PI05, PI0, NANO_PI05, *TINY.values()])
    def test_sizes_are_read_back_from_shapes(self, spec: object) -> None:
        found = spec_from_shapes(expected_tensors(spec), 'here', spec.horizon)  # type: ignore[attr-defined, arg-type]
        assert found == spec

    @pytest.mark.parametrize('spec', TINY.values(), ids=TINY)
    def test_network_uses_expected_tensors_and_skips_what_is_never_needed(self, spec: object) -> None:
        expected = expected_tensors(spec)  # type: ignore[arg-type]
        used = {
            canonical_name(name): tuple(parameter.shape)
            for name, parameter in PiModel(spec).state_dict().items()  # type: ignore[arg-type]
        }
        assert used.items() <= expected.items()
        language = 'paligemma_with_expert.paligemma.model.language_model.'
        last = language + 'layers.1.'
        unused = {'self_attn.q_proj', 'self_attn.o_proj', 'post_attention_layernorm'}
        unused |= {f'mlp.{part}_proj' for part in ('gate', 'up', 'down')}
        assert expected.keys() - used.keys() == {
            language + 'norm.weight',
            *(f'{last}{name}.weight' for name in unused),
        }


class TestRandomCheckpoints:
    def test_a_tensor_depends_on_seed_and_name_only(self) -> None:
        spec = TINY['pi05']
        tensors, again, other = random_tensors(spec, 4), random_tensors(spec, 4), random_tensors(spec, 5)
        for name in list(tensors)[:40]:
            assert torch.equal(tensors[name], again[name])
            assert not torch.equal(tensors[name], other[name])

    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
    def test_file_holds_the_tensors_in_the_dtype_asked_for(self, dtype: torch.dtype, tmp_path: Path) -> None:
        spec = TINY['pi0']
        directory = write_random_checkpoint(tmp_path / 'new', spec, 'lerobot', dtype, seed=2, views=('top',))
        found = open_checkpoint(directory)
        assert found.processing.views == ('top',)
        assert found.spec == spec
        expected = random_tensors(spec, 2, dtype)
        assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)

    def test_no_value_is_left_at_zero_or_one(self) -> None:
        tensors = random_tensors(TINY['pi05'])
        assert all(tensors[name].std() > 0.01 for name in tensors)

    def test_format_is_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="'onnx' is no checkpoint format"):
            write_random_checkpoint(tmp_path, TINY['pi0'], 'onnx')


class TestNoise:
    def test_seed_repeats_the_draws(self, checkpoint: Make, observation: Observation) -> None:
        directory = checkpoint()
        draws = [load(directory, PolicyOptions(seed=seed)).infer(observation).actions for seed in (1, 1, 2)]
        np.testing.assert_array_equal(draws[0], draws[1])
        assert np.abs(draws[0] - draws[2]).max() > 1e-3

    @pytest.mark.parametrize(
        'noise',
        [NOISE[:-1], NOISE.astype(np.float64), np.full_like(NOISE, np.nan)],
        ids=['shape', 'dtype', 'nan'],
    )
    def test_bad_noise_is_refused(
        self, noise: np.ndarray, checkpoint: Make, observation: Observation
    ) -> None:
        policy = load(checkpoint(), PolicyOptions())
        with pytest.raises(ObservationError, match=r'Give finite float32 \[12, 32\]'):
            policy.infer(observation, noise)

    def test_actions_that_are_not_finite_are_never_returned(self, checkpoint: Make) -> None:
        info = load(checkpoint(), PolicyOptions()).info
        with pytest.raises(BackendError, match='the network gave NaN or Inf in fp32'):
            check_finite(np.array([[np.inf]]), info)


def test_steps_are_the_checkpoints_unless_chosen(checkpoint: Make, observation: Observation) -> None:
    directory = checkpoint('lerobot')
    path = directory / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'num_inference_steps': 4}))
    assert load(directory, PolicyOptions()).info.steps == 4
    assert load(directory, PolicyOptions(steps=7)).info.steps == 7


def test_more_steps_come_closer_to_the_flow(checkpoint: Make, observation: Observation) -> None:
    """Euler's error halves with the step: the flow is integrated from 1 to 0, not along another path."""
    directory = checkpoint()
    results = {
        steps: load(directory, PolicyOptions(steps=steps)).infer(observation, NOISE).actions
        for steps in (16, 32, 256)
    }
    errors = [np.linalg.norm(results[steps] - results[256]) for steps in (16, 32)]
    assert 1.6 < errors[0] / errors[1] < 3


def test_time_embedding_matches_its_formula() -> None:
    times = torch.tensor([1.0, 0.1])
    embedded = time_embedding(times, 8).numpy()
    for row, time in zip(embedded, times.double().numpy(), strict=True):
        angles = 2 * np.pi * time / (4e-3 * 1000 ** (np.arange(4) / 3))
        np.testing.assert_allclose(row, np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-6)
