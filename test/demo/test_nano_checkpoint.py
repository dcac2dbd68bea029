"""The committed checkpoint, and the one place where training computes what the model does in another way."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.make_nano_checkpoint import lessons
from demo.training import batch_velocity
from flashrt_ros.configuration import check_against, load_config
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.evaluation.run import read_run
from flashrt_ros.models.gemma import rotary_table
from flashrt_ros.models.pi import load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.policy import PolicyOptions, load_policy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def config():
    return load_config(ROOT / 'config/so101.yaml')


@pytest.fixture(scope='module')
def examples(config):
    """A few moments from all over the episode."""
    with open_bag(ROOT / 'demo/episode') as bag:
        commands = read_run(bag, config).reference
        return list(islice(lessons(bag, config, commands), 100, None, 160))


@torch.no_grad()
def test_batch_with_a_time_for_each_row_flows_as_the_rows_do_alone():
    model = load_model(NANO_PI05, random_tensors(NANO_PI05, seed=3), torch.float32)
    generator = torch.Generator().manual_seed(0)
    caches = [
        tuple(torch.randn(3, 1, 40, NANO_PI05.expert.head_dim, generator=generator) for _ in range(2))
        for _ in range(NANO_PI05.language.layers)
    ]
    noisy = torch.randn(3, NANO_PI05.horizon, NANO_PI05.action_dim, generator=generator)
    times = torch.tensor([0.1, 0.5, 1.0])
    rotary = rotary_table(torch.arange(40, 40 + NANO_PI05.horizon), NANO_PI05.expert.head_dim)
    together = batch_velocity(model, caches, noisy, times)
    for row in range(3):
        alone = [(keys[row : row + 1], values[row : row + 1]) for keys, values in caches]
        condition = model.conditions(times[row : row + 1])[0]
        expected = model.velocity(noisy[row : row + 1], condition, alone, rotary)
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-4, atol=1e-5)


def test_lessons_begin_at_the_oldest_stamp_used(config, examples):
    for example in examples:
        assert set(example.observation.images) == set(config.cameras)
        assert example.actions.shape == (NANO_PI05.horizon, len(config.joint_names))
        # The arm follows its commands within a few tens of ms, but for the gripper with the cube in it.
        assert np.abs(example.actions[0] - example.observation.state)[:5].max() < 0.2


def test_checkpoint_fits_the_configuration_and_follows_the_episode(config, examples):
    policy = load_policy(ROOT / 'demo/nano_pi05', PolicyOptions(seed=0))
    try:
        check_against(config, policy.info)
        chunks = [policy.infer(example.observation).actions for example in examples]
    finally:
        policy.close()
    wanted = np.array([example.actions for example in examples])
    error = np.sqrt(np.mean((chunks - wanted) ** 2, axis=(0, 1)) / wanted.var(axis=(0, 1)))
    # Relative to always answering with the mean, which is 1.
    assert error.mean() < 0.4
