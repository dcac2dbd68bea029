"""Real-time chunking in the flow: against lerobot, against autograd in float64, and its effect."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flashrt_ros.control.guidance import prefix_weights
from flashrt_ros.errors import CheckpointError, ObservationError
from flashrt_ros.models.backend import CpuPolicy, load
from flashrt_ros.models.guidance import Guide, guidance_weight, guided_velocity, make_guide
from flashrt_ros.policy import Guidance, Observation, PolicyOptions
from models.conftest import Make
from models.oracle_cases import read_cases, relative_error
from models.test_parity_with_lerobot import FIXTURES, ORACLE, TOLERANCE, generated, lerobot  # noqa: F401

STEPS = 10


def compare(directory: Path, results: Path) -> float:
    """The worst relative error of identity guidance against lerobot's, over all its cases."""
    tensors, worst = load_file(results / 'rtc.safetensors'), 0.0
    cases = list(read_cases(directory))
    for index, settings in enumerate(json.loads((results / 'rtc.json').read_text())):
        case = cases[settings['case']]
        policy = load(directory, PolicyOptions(steps=case.steps))
        left_over = tensors[f'{index}.left_over']
        end = min(settings['end'], len(left_over))
        weights = prefix_weights(settings['delay'], end, len(left_over), settings['schedule'].lower())
        horizon, width = policy.spec.horizon, policy.spec.action_dim
        target, rows = torch.zeros(1, horizon, width), torch.zeros(horizon, width)
        target[0, : len(left_over), : left_over.shape[1]] = left_over
        rows[: len(left_over)] = torch.from_numpy(weights)[:, None]
        gammas = tuple(guidance_weight(1 - step / case.steps, settings['clip']) for step in range(case.steps))
        guide = Guide('identity', target, rows, 0, gammas)
        actions = network(policy, case.observation, case.expected['noise'], guide)
        expected = tensors[f'{index}.network'].numpy()
        worst = max(worst, relative_error(actions[:, : expected.shape[1]], expected))
    return worst


@torch.no_grad()
def network(
    policy: CpuPolicy, observation: Observation, noise: np.ndarray, guide: Guide | None
) -> np.ndarray:
    """What the network gives, normalised and padded, [H, A]."""
    prepared = policy.processing.prepare(observation)
    prefix = policy._model.prefill(policy._model.see(prepared.images), prepared.tokens, prepared.state)
    return policy._model.denoise(torch.tensor(noise)[None], prefix, policy._table, guide)[0].numpy()


@pytest.mark.parametrize('family', ['pi0', 'pi05'])
def test_identity_guidance_is_what_lerobot_computes(family: str) -> None:
    directory = FIXTURES / f'lerobot_{family}'
    error = compare(directory, directory)
    print(f'{family}: identity guidance, relative error {error:.1e}')
    assert error < TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('family', ['pi0', 'pi05'])
def test_identity_guidance_is_what_lerobot_computes_now(
    family: str,
    generated: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    directory = generated / f'{family}_0'
    python = Path(__file__).parents[2] / '.cache' / 'oracle' / 'bin' / 'python'
    subprocess.run([python, ORACLE / 'guide.py', directory, '--out', tmp_path], check=True)
    error = compare(directory, tmp_path)
    print(f'{family}: identity guidance against lerobot run now, relative error {error:.1e}')
    assert error < TOLERANCE


class Denoiser:
    """A small nonlinear flow field in float64, whose rows and columns all mix."""

    def __init__(self, horizon: int, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = horizon * width
        self.first = torch.randn(3 * size, size, generator=generator, dtype=torch.float64) / size**0.5
        self.second = torch.randn(size, 3 * size, generator=generator, dtype=torch.float64) / size**0.5

    def __call__(self, actions: torch.Tensor) -> torch.Tensor:
        return (self.second @ torch.tanh(self.first @ actions.flatten())).reshape(actions.shape)


@pytest.mark.parametrize('time', [1.0, 0.7, 0.1])
@pytest.mark.parametrize('seed', [0, 1])
def test_exact_guidance_is_the_published_formula_with_the_whole_jacobian(time: float, seed: int) -> None:
    horizon, width, clip = 7, 3, 5.0
    field = Denoiser(horizon, width, seed)
    actions, target = torch.randn(2, 1, horizon, width, dtype=torch.float64)
    weights = torch.rand(horizon, width, dtype=torch.float64)
    guide = Guide('exact', target, weights, 0, ())

    # The paper's notation: tau from 0 (noise) to 1, velocity towards the data.
    tau = 1 - time
    clean = lambda noisy: noisy + (1 - tau) * -field(noisy)  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(clean, actions).reshape(horizon * width, -1)
    pull = jacobian.T @ (weights * (target - clean(actions))).flatten()
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    gamma = min(clip, (1 - tau) / (tau * r2)) if tau else clip
    published = -field(actions) + gamma * pull.reshape(actions.shape)

    ours = guided_velocity(field, actions, time, guidance_weight(time, clip), guide)
    assert relative_error(-ours.numpy(), published.numpy()) < 1e-14
    assert not ours.requires_grad
    identity = guided_velocity(field, actions, time, gamma, replace(guide, method='identity'))
    assert relative_error(identity.numpy(), ours.numpy()) > 0.02


@pytest.mark.parametrize('family', ['pi0', 'pi05'])
def test_exact_guidance_of_the_network_is_the_product_with_its_jacobian(
    family: str, checkpoint: Make, observation: Observation
) -> None:
    """One flow step of the whole network, its Jacobian taken column by column in fp32."""
    policy = load(checkpoint('openpi', family), PolicyOptions(steps=1))
    generator = torch.Generator().manual_seed(2)
    horizon, width = policy.spec.horizon, policy.spec.action_dim
    noise, target = torch.randn(2, 1, horizon, width, generator=generator)
    weights = torch.rand(horizon, width, generator=generator)
    guide = Guide('exact', target, weights, 0, (2.0,))
    actual = network(policy, observation, noise[0].numpy(), guide)
    with torch.no_grad():
        prepared = policy.processing.prepare(observation)
        prefix = policy._model.prefill(policy._model.see(prepared.images), prepared.tokens, prepared.state)
        clean = lambda start: policy._model.denoise(start, prefix, policy._table)  # noqa: E731
        unguided = clean(noise)
    jacobian = torch.autograd.functional.jacobian(clean, noise).reshape(horizon * width, -1)
    pull = jacobian.T @ (weights * (target - unguided)).flatten()
    expected = unguided + 2.0 * pull.reshape(noise.shape)
    assert relative_error(actual, expected[0].numpy()) < TOLERANCE


def test_the_guidance_weight_is_clipped_and_symmetric_in_time() -> None:
    assert guidance_weight(1.0, 5.0) == 5.0
    assert guidance_weight(0.5, 5.0) == pytest.approx(2.0)
    assert guidance_weight(0.9, 50.0) == pytest.approx((0.81 + 0.01) / 0.09)
    assert guidance_weight(0.05, 5.0) == 5.0


@pytest.mark.parametrize('method', ['identity', 'exact'])
def test_guidance_pulls_the_first_rows_to_the_target(
    method: str, checkpoint: Make, observation: Observation
) -> None:
    policy = load(checkpoint('openpi', 'pi05'), PolicyOptions(seed=0))
    noise = np.random.default_rng(1).normal(size=(12, 32)).astype(np.float32)
    free = policy.infer(observation, noise).actions
    other = policy.infer(observation, noise[::-1].copy()).actions
    weights = prefix_weights(3, 9, 9, 'exp').astype(np.float32)
    guided = policy.infer(observation, noise, Guidance(method, other[:9], weights)).actions
    distance = np.linalg.norm(guided - other, axis=1) / np.linalg.norm(free - other, axis=1)
    print(method, np.round(distance, 2))
    assert distance[:3].max() < 0.5
    assert distance[:3].mean() < distance[9:].mean()
    unweighted = policy.infer(observation, noise, Guidance(method, other[:9], np.zeros(9, np.float32)))
    np.testing.assert_allclose(unweighted.actions, free, rtol=0, atol=1e-5)


def trained(directory: Path, rows: int) -> Path:
    config = json.loads((directory / 'config.json').read_text())
    (directory / 'config.json').write_text(json.dumps({**config, 'rtc_training_max_delay': rows}))
    return directory


def test_a_prefix_is_frozen_exactly_and_the_rest_sees_it(checkpoint: Make, observation: Observation) -> None:
    policy = load(trained(checkpoint('openpi', 'pi05'), 4), PolicyOptions(seed=0))
    assert policy.info.trained_prefix == 4
    assert policy.info.guidance_refusals['prefix'] == ''
    noise = np.random.default_rng(1).normal(size=(12, 32)).astype(np.float32)
    free = policy.infer(observation, noise).actions
    other = policy.infer(observation, noise[::-1].copy()).actions
    frozen = policy.infer(observation, noise, Guidance('prefix', other[:4])).actions
    np.testing.assert_allclose(frozen[:4], other[:4], rtol=0, atol=1e-5)
    assert np.abs(frozen[4:] - free[4:]).max() > 1e-3


def test_frozen_rows_are_given_the_flow_time_of_clean_actions(
    checkpoint: Make, observation: Observation
) -> None:
    """Written out for one step: rows of the prefix are modulated as at t = 0, the others as at t = 1."""
    policy = load(trained(checkpoint('openpi', 'pi05'), 4), PolicyOptions(steps=1))
    model, horizon = policy._model, policy.spec.horizon
    noise = torch.randn(1, horizon, policy.spec.action_dim)
    guidance = Guidance('prefix', np.zeros((3, 6), np.float32))
    guide = make_guide(guidance, policy.processing, policy.info, observation.state, 1)
    actual = network(policy, observation, noise[0].numpy(), guide)
    with torch.no_grad():
        prepared = policy.processing.prepare(observation)
        prefix = model.prefill(model.see(prepared.images), prepared.tokens, prepared.state)
        noisy, clean = model.conditions(torch.tensor([1.0, 0.0]))
        rows = torch.stack([clean] * 3 + [noisy] * (horizon - 3), dim=2)
        start = torch.cat([guide.target[:, :3], noise[:, 3:]], 1)
        velocity = model.velocity(start, rows, prefix, model._rotary(prefix, horizon))
    np.testing.assert_allclose(actual[3:], (start - velocity)[0, 3:].numpy(), rtol=1e-5, atol=1e-6)
    # One row of conditions for all is what the unguided path computes.
    with torch.no_grad():
        same = model.velocity(noise, noisy, prefix, model._rotary(prefix, horizon))
        each = model.velocity(
            noise, torch.stack([noisy] * horizon, 2), prefix, model._rotary(prefix, horizon)
        )
    torch.testing.assert_close(same, each)


@pytest.mark.parametrize(
    ('layout', 'family'), [(a, b) for a in ('openpi', 'lerobot') for b in ('pi0', 'pi05')]
)
def test_encoding_inverts_restoring(
    layout: str, family: str, checkpoint: Make, observation: Observation
) -> None:
    processing = load(checkpoint(layout, family), PolicyOptions()).processing
    processing = replace(processing, delta=(True, False, True, False, False, True))
    normalised = np.random.default_rng(0).uniform(-1, 1, (5, 32)).astype(np.float32)
    actions = processing.restore(normalised, observation.state)
    encoded = processing.encode(actions, observation.state)
    np.testing.assert_allclose(encoded[:, :6], normalised[:, :6], rtol=0, atol=2e-6)
    assert not encoded[:, 6:].any()


def test_a_constant_column_is_encoded_as_its_constant_and_not_guided() -> None:
    """One joint of this checkpoint never moved: any noise on it would be blown up 1e8 times."""
    directory = FIXTURES / 'lerobot_pi05'
    policy = load(directory, PolicyOptions())
    case = next(iter(read_cases(directory)))
    actions = np.array(case.expected['actions'][:4])
    actions[:, 5] += 1e-3
    assert policy.processing.constant_columns(6).tolist() == [False] * 5 + [True]
    guidance = Guidance('identity', actions, np.ones(4, np.float32))
    guide = make_guide(guidance, policy.processing, policy.info, case.observation.state, 10)
    assert np.abs(guide.target.numpy()).max() < 10
    assert guide.weights[:4, 5].sum() == 0
    assert guide.weights[:4, :5].min() == 1


@pytest.mark.parametrize(
    ('guidance', 'message'),
    [
        (Guidance('prefix', np.zeros((2, 6))), 'was not trained with a frozen prefix'),
        (Guidance('vjp', np.zeros((2, 6))), "there is no method 'vjp'"),
        (Guidance('exact', np.zeros((13, 6)), np.zeros(13)), r'the actions are \[13, 6\]'),
        (Guidance('exact', np.zeros((0, 6)), np.zeros(0)), r'the actions are \[0, 6\]'),
        (Guidance('exact', np.zeros((2, 5)), np.zeros(2)), '5 action columns'),
        (Guidance('exact', np.full((2, 6), np.nan), np.zeros(2)), 'an action is not finite'),
        (Guidance('exact', np.zeros((2, 6))), 'there is not one weight for each row'),
        (Guidance('identity', np.zeros((2, 6)), np.zeros(3)), 'there is not one weight for each row'),
        (Guidance('identity', np.zeros((2, 6)), np.array([0.5, 1.5])), 'a weight is not in 0 to 1'),
        (Guidance('identity', np.zeros((2, 6)), np.array([0.5, np.nan])), 'a weight is not in 0 to 1'),
        (Guidance('identity', np.zeros((2, 6)), np.ones(2), clip=-1.0), 'clip is negative'),
    ],
)
def test_impossible_guidance_is_refused(
    guidance: Guidance, message: str, checkpoint: Make, observation: Observation
) -> None:
    policy = load(checkpoint('openpi', 'pi05'), PolicyOptions())
    with pytest.raises(ObservationError, match=message):
        policy.infer(observation, None, guidance)


def test_a_prefix_longer_than_trained_is_refused(checkpoint: Make, observation: Observation) -> None:
    policy = load(trained(checkpoint('openpi', 'pi05'), 2), PolicyOptions())
    with pytest.raises(ObservationError, match='3 rows are frozen, but the checkpoint was trained with 2'):
        policy.infer(observation, None, Guidance('prefix', np.zeros((3, 6), np.float32)))


def test_pi0_cannot_freeze_a_prefix(checkpoint: Make) -> None:
    policy = load(checkpoint('openpi', 'pi0'), PolicyOptions(trained_prefix=4))
    assert 'only pi0.5 has' in policy.info.guidance_refusals['prefix']


@pytest.mark.parametrize('rows', [-1, 12])
def test_a_trained_prefix_that_no_chunk_has_is_refused(rows: int, checkpoint: Make) -> None:
    with pytest.raises(CheckpointError, match='a frozen prefix of'):
        load(checkpoint('openpi', 'pi05'), PolicyOptions(trained_prefix=rows))


@pytest.mark.parametrize('schedule', ['exp', 'linear', 'ones'])
def test_weights_follow_the_published_schedule(schedule: str) -> None:
    delay, end, horizon = 3, 8, 12
    weights = prefix_weights(delay, end, horizon, schedule)
    for row in range(horizon):
        share = (end - row) / (end - delay + 1)
        middle = {'exp': share * math.expm1(share) / (math.e - 1), 'linear': share, 'ones': 1.0}[schedule]
        expected = 1.0 if row < delay else middle if row < end else 0.0
        assert weights[row] == pytest.approx(expected, abs=1e-6)
