"""Exact guidance as the nodes ask for it: through `load_policy`, from raw pictures to actions, against the
CPU policy of the same checkpoint."""

from dataclasses import replace

import numpy as np
import pytest

from engine.reference import NANO_PI0
from flashrt_ros.engine.calibration.measure import random_observations
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.policy import Guidance, PolicyOptions, load_policy

SPECS = {'pi05': NANO_PI05, 'pi0': NANO_PI0}
OPTIONS = PolicyOptions(guidance='exact', steps=4, seed=0)


class Pair:
    """A policy and its reference on the CPU, and what guidance changes in their actions."""

    def __init__(self, path, options):
        self.policy, self.reference = load_policy(path, options), load_policy(path, OPTIONS)
        rng = np.random.default_rng(3)
        self.observation = random_observations(open_checkpoint(path), 1, 3)[0]
        self.noise = rng.standard_normal((50, 32)).astype(np.float32)
        self.actions = rng.random((20, self.policy.info.action_dim), dtype=np.float32)
        self.weights = np.linspace(1, 0, 20, dtype=np.float32)

    def changes(self, method, clip=5.0):
        guidance = Guidance(method, self.actions, self.weights, clip)
        both = self.policy, self.reference
        guided, free = (
            [policy.infer(self.observation, self.noise, given).actions for policy in both]
            for given in (guidance, None)
        )
        return (after - before for after, before in zip(guided, free, strict=True))


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.gpu
@pytest.mark.parametrize('spec', SPECS.values(), ids=SPECS)
def test_the_gpu_guides_by_the_true_product(library, spec, tmp_path):
    path = write_random_checkpoint(tmp_path / 'policy', spec)
    pair = Pair(path, replace(OPTIONS, device='cuda', precision='bf16'))
    assert pair.policy.info.guidance_refusals['exact'] == ''
    found, expected = pair.changes('exact')
    assert relative(found, expected) < 0.03
    # The identity in its place would be further away than rounding is; so would none at all.
    _, cheap = pair.changes('identity')
    assert relative(cheap, expected) > 0.1
    _, small = pair.changes('exact', clip=0.5)
    assert relative(small, expected) > 0.1
