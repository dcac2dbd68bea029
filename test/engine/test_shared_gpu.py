"""The denoise loop beside other processes: the GPU lets them take turns, and blocks are stopped anywhere."""

import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
import torch

from benchmarks.expert_trial import ExpertTrial, TrialShape, exact_loop
from engine.reference import random_guide

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

NEIGHBOURS, RUNS = 4, 1000

NEIGHBOUR = """
import torch
x = torch.randn(2048, 2048, device='cuda', dtype=torch.bfloat16)
torch.cuda.synchronize()
print('computing', flush=True)
while True:
    for _ in range(20):
        x @ x
    torch.cuda.synchronize()
"""


@contextmanager
def neighbour():
    """A process that computes without end, from when it has begun."""
    command = [sys.executable, '-c', NEIGHBOUR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == 'computing\n'
            yield
            assert process.poll() is None
        finally:
            process.kill()


@pytest.fixture
def neighbours():
    with ExitStack() as stack:
        for _ in range(NEIGHBOURS):
            stack.enter_context(neighbour())
        yield


@pytest.mark.parametrize('precision', ['bf16', 'fp8', 'int8'])
def test_the_loop_beside_others_is_the_same_to_the_last_bit(library, precision, neighbours):
    trial = ExpertTrial(library, 'pi05', precision, TrialShape(layers=18, steps=10))
    observed = trial.observe(562)
    first = trial.found(*observed)
    assert first.isfinite().all()
    different = sum(not torch.equal(trial.found(*observed), first) for _ in range(RUNS))
    assert not different, f'{different} of {RUNS} runs'


@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
def test_exact_guidance_beside_others_is_the_same_to_the_last_bit(library, precision, neighbours):
    trial = ExpertTrial(library, 'pi05', precision, TrialShape(layers=18, steps=10))
    noise, _ = trial.observe(562)
    exact = exact_loop(trial)
    guide = random_guide(trial.spec, 'exact', 9, 'cuda')

    @torch.no_grad()
    def found():
        exact.guide.write(guide)
        exact.actions.copy_(noise)
        exact.run()
        torch.cuda.synchronize()
        return exact.actions.clone()

    first = found()
    assert first.isfinite().all()
    different = sum(not torch.equal(found(), first) for _ in range(RUNS // 10))
    assert not different, f'{different} of {RUNS // 10} runs'
