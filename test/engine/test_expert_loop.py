"""The fused denoise loop against the plain model in fp32: two layers of published width, fresh prefixes."""

import subprocess
import sys

import pytest
import torch

from benchmarks.expert_trial import ExpertTrial, TrialShape
from engine.reference import cosine, random_guide
from flashrt_ros.engine.cuda.graph import StagedGraph

pytestmark = pytest.mark.gpu

LEAST_COSINE = {'bf16': 0.9999, 'fp8': 0.996, 'int8': 0.998}
"""Of what the flow steps add to the noise."""

MOST_GUIDED = 1.5
"""Error of what guidance changes, by that of the actions without it; 1.19 has been seen. The cosine of a
change tells more of its size: that of a single row is not much larger than the rounding."""

LENGTHS = {'bf16': (562, 1, 200, 712), 'fp8': (562, 257, 400, 712), 'int8': (562, 257, 400, 712)}
"""Prefixes. The scales of fp8 are made at 562, and hold for every prefix with at least one view."""


@pytest.mark.parametrize('family', ['pi05', 'pi0'])
@pytest.mark.parametrize('precision', ['bf16', 'fp8', 'int8'])
@pytest.mark.parametrize('horizon', [1, 10, 50, 63])
def test_actions_are_those_of_the_plain_model(library, family, precision, horizon):
    trial = ExpertTrial(library, family, precision, TrialShape(horizon=horizon))
    for length in LENGTHS[precision]:
        observed = trial.observe(length)
        added = trial.found(*observed) - observed[0]
        assert cosine(added, trial.expected(*observed) - observed[0]) > LEAST_COSINE[precision]


@pytest.mark.parametrize(
    ('family', 'precision', 'method'),
    [
        ('pi05', 'bf16', 'identity'),
        ('pi05', 'fp8', 'identity'),
        ('pi0', 'bf16', 'identity'),
        ('pi0', 'int8', 'identity'),
        ('pi05', 'bf16', 'prefix'),
        ('pi05', 'fp8', 'prefix'),
    ],
)
def test_guided_actions_are_those_of_the_plain_model(library, family, precision, method):
    trial = ExpertTrial(library, family, precision, TrialShape(horizon=50))
    for rows in (1, 9, 16, 49):
        observed = trial.observe(562)
        free = trial.found(*observed)
        guide = random_guide(trial.spec, method, rows, 'cuda')
        expected, found = trial.expected(*observed, guide=guide), trial.found(*observed, guide)
        assert cosine(found - observed[0], expected - observed[0]) > LEAST_COSINE[precision]
        plain = trial.expected(*observed)
        changed, to_change = found - free, expected - plain
        assert (changed - to_change).norm() < MOST_GUIDED * (free - plain).norm()
        assert method == 'identity' or torch.equal(found[:rows], guide.target[0, :rows])
        assert torch.equal(trial.found(*observed), free)  # nothing of it is left


def test_one_graph_serves_every_prefix_length(library):
    trial = ExpertTrial(library, 'pi05', 'bf16', TrialShape())
    trial.observe(562)
    graph = StagedGraph([('loop', trial.loop.launch)], library.context.new_stream())
    for length in (1, 64, 65, 700):
        observed = trial.observe(length)
        trial.stage(*observed)
        graph.launch()
        torch.cuda.synchronize()
        added = trial.loop.actions - observed[0]
        assert cosine(added, trial.expected(*observed) - observed[0]) > LEAST_COSINE['bf16']


@pytest.mark.parametrize(('family', 'precision'), [('pi05', 'fp8'), ('pi0', 'int8')])
def test_replays_are_equal_to_the_last_bit(library, family, precision):
    trial = ExpertTrial(library, family, precision, TrialShape())
    observed = trial.observe(400)
    first = trial.found(*observed)
    assert all(torch.equal(trial.found(*observed), first) for _ in range(20))


@pytest.mark.parametrize(('family', 'precision'), [('pi05', 'bf16'), ('pi05', 'fp8'), ('pi0', 'bf16')])
def test_what_is_not_a_number_passes_through_and_is_forgotten(library, family, precision):
    """Blocks wait for data that is not PENDING, a NaN itself: no other NaN may keep them waiting."""
    trial = ExpertTrial(library, family, precision, TrialShape())
    noise, state = trial.observe(300)
    sound = trial.found(noise, state)
    for bad in (float('nan'), float('inf')):
        assert trial.found(torch.full_like(noise, bad), state).isnan().all()
        if trial.spec.has_state_token:
            assert trial.found(noise, torch.full_like(state, bad)).isnan().all()
    assert torch.equal(trial.found(noise, state), sound)
    trial.prefix.values[:, 7] = float('nan')
    assert trial.found(noise, state).isnan().all()


def test_what_an_aborted_run_leaves_behind_is_forgotten(library):
    trial = ExpertTrial(library, 'pi05', 'fp8', TrialShape())
    observed = trial.observe(300)
    sound = trial.found(*observed)
    trial.loop.exchange.random_()
    assert torch.equal(trial.found(*observed), sound)


TWO_LOOPS = """
import torch
from flashrt_ros.engine.cuda.device import find_gpu
from benchmarks.expert_trial import ExpertTrial, TrialShape
from flashrt_ros.engine.cuda.library import KernelLibrary

library = KernelLibrary(find_gpu())
trials = [ExpertTrial(library, 'pi05', 'fp8', TrialShape(), seed) for seed in (1, 2)]
observed = [trial.observe(400) for trial in trials]
alone = [trial.found(*o) for trial, o in zip(trials, observed)]
streams = [library.context.new_stream() for _ in trials]
for _ in range(50):
    for trial, o in zip(trials, observed):
        trial.stage(*o)
    for trial, stream in zip(trials, streams):
        with torch.cuda.stream(stream):
            trial.loop.launch()
    torch.cuda.synchronize()
    assert all(torch.equal(trial.loop.actions, a) for trial, a in zip(trials, alone))
"""


def test_two_loops_at_once_do_not_block_each_other(library):
    """In a process of its own: blocks that wait for ever end with an error that no other test survives."""
    done = subprocess.run([sys.executable, '-c', TWO_LOOPS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_odd_numbers_of_layers_and_steps(library):
    """Halves of the exchange buffers alternate with the layers over all steps."""
    for layers, steps in ((1, 1), (1, 3), (3, 1), (3, 3)):
        trial = ExpertTrial(library, 'pi05', 'bf16', TrialShape(layers=layers, steps=steps))
        for length in (562, 100):
            observed = trial.observe(length)
            added = trial.found(*observed) - observed[0]
            assert cosine(added, trial.expected(*observed) - observed[0]) > LEAST_COSINE['bf16']
