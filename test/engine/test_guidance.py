"""Guidance as an input of the engine's loops, against the plain model; off, it changes no bit."""

import copy
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from engine.plain_operators import PlainOperators
from engine.reference import NANO_PI0, normal, random_guide, relative_error
from engine.test_engine import Case
from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators.forward import Modulation
from flashrt_ros.engine.towers.denoise import PlainDenoise
from flashrt_ros.engine.weights.store import pack
from flashrt_ros.models.pi import load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import NANO_PI05, VisionSpec

gpu = pytest.mark.gpu
CPU = torch.device('cpu')
LENGTH = 37

METHODS = [(NANO_PI05, 'identity'), (NANO_PI05, 'prefix'), (NANO_PI0, 'identity')]


def without_towers(spec):
    """The same action expert, and of everything else next to nothing."""
    vision = VisionSpec(layers=1, width=144, heads=2, mlp=64)
    language = replace(spec.language, width=64, mlp=64)
    return replace(spec, vision=vision, language=language, vocab=64, horizon=20, steps=4)


class PlainCase:
    """The plain loop on the CPU behind a random prefix, and the plain model on the same weights."""

    def __init__(self, spec):
        torch.manual_seed(0)
        spec = without_towers(spec)
        tensors = random_tensors(spec, 1)
        cache = PrefixCache.allocate(spec, 1, CPU)
        for buffer in (cache.keys, cache.values):
            buffer[:, :LENGTH] = torch.randn(len(buffer), LENGTH, buffer.shape[2])
        cache.length.fill_(LENGTH)
        self.loop = PlainDenoise(PlainOperators(), spec, pack(tensors, spec, 'bf16'), {}, cache)
        self.model, self.spec = load_model(spec, tensors, torch.float32), spec
        self.noise, self.state = torch.randn(spec.horizon, spec.action_dim), torch.randn(spec.action_dim)
        self.prefix = [
            tuple(t[i, :LENGTH].float()[None, None] for t in (cache.keys, cache.values))
            for i in range(spec.expert.layers)
        ]

    def found(self, guide):
        self.loop.guide.write(guide)
        self.loop.actions.copy_(self.noise)
        self.loop.state.copy_(self.state)
        with torch.inference_mode():
            self.loop.run()
        return self.loop.actions.clone()

    @torch.no_grad()
    def expected(self, guide):
        return self._denoise(self.model, self.prefix, self.noise, guide)

    def expected_velocity(self, start):
        """Of the first flow step, in float64, to be differentiated by the start [H, A]."""
        model, prefix = copy.deepcopy(self.model).double(), [(k.double(), v.double()) for k, v in self.prefix]
        with patch.object(torch.Tensor, 'float', torch.Tensor.double):  # what the model keeps in fp32
            table = model.flow_table(self.spec.steps)[:1]
            return start - model.denoise(start[None], self._with_state(model, prefix), table)[0]

    def _denoise(self, model, prefix, start, guide=None):
        table = model.flow_table(self.spec.steps)
        return model.denoise(start[None], self._with_state(model, prefix), table, guide)[0]

    def _with_state(self, model, prefix):
        if not self.spec.has_state_token:
            return prefix
        token = model.state_proj(self.state[None].to(model.dtype))[:, None]
        return model.expert(token, model._rotary(prefix, 1), prefix)[1]


@pytest.mark.parametrize(('spec', 'method'), METHODS, ids=str)
def test_the_plain_loop_guides_as_the_plain_model(spec, method):
    case = PlainCase(spec)
    free, expected_free = case.found(None), case.expected(None)
    for rows in (1, 12, 20):
        guide = random_guide(case.spec, method, rows)
        found, expected = case.found(guide), case.expected(guide)
        assert relative_error(found - case.noise, expected - case.noise) < 0.02
        assert relative_error(found - free, expected - expected_free) < 0.02
        assert method == 'identity' or torch.equal(found[:rows], guide.target[0, :rows])
    assert torch.equal(case.found(None), free)


def test_the_inputs_hold_what_was_written_last():
    inputs, guide = GuideInputs(NANO_PI05, CPU), random_guide(NANO_PI05, 'identity', 9)
    kept = inputs.target.data_ptr(), inputs.weights.data_ptr(), inputs.gammas.data_ptr()
    inputs.write(guide)
    assert torch.equal(inputs.target, guide.target[0])
    assert torch.equal(inputs.weights, guide.weights)
    assert inputs.gammas.tolist() == pytest.approx(guide.gammas)
    assert inputs.frozen.tolist() == [0]
    inputs.write(random_guide(NANO_PI05, 'prefix', 7))
    assert inputs.frozen.tolist() == [7]
    assert not inputs.weights.any()
    inputs.write(None)
    assert not any(part.any() for part in (inputs.target, inputs.weights, inputs.gammas, inputs.frozen))
    assert (inputs.target.data_ptr(), inputs.weights.data_ptr(), inputs.gammas.data_ptr()) == kept


@gpu
@pytest.mark.parametrize(('spec', 'method'), METHODS, ids=str)
def test_one_graph_takes_any_guidance(library, spec, method):
    case = Case(library, spec, 'bf16')
    observation = case.observation()
    free, noise, graphs = case.found(observation), observation[3], dict(case.engine._acting)
    for rows in (1, 12, 50):
        guide = random_guide(spec, method, rows)
        found, expected = case.found(observation, guide), case.expected(observation, guide)
        assert relative_error(found - noise, expected - noise) < 0.02
        assert method == 'identity' or torch.equal(found[:rows], guide.target[0, :rows])
        assert torch.equal(case.found(observation), free)
    assert case.engine._acting == graphs


@gpu
@pytest.mark.parametrize('frozen', [0, 1, 17, 50])
def test_frozen_rows_take_the_modulation_of_clean_actions(operators, frozen):
    table, residual, delta = normal(3, 3, 1024), normal(50, 1024), normal(50, 1024, dtype=torch.bfloat16)
    rows = torch.tensor([frozen], dtype=torch.int32, device='cuda')
    out, updated = torch.full_like(delta, float('nan')), torch.full_like(residual, float('nan'))
    before = residual.clone()
    modulation = Modulation(*table[0], rows, 2 * 3 * 1024)
    operators.norm(residual, out, None, delta=delta, gate=table[0, 2], modulation=modulation, updated=updated)
    clean = torch.arange(50, device='cuda')[:, None] < frozen
    scale, shift, gate = (torch.where(clean, table[2, i], table[0, i]) for i in range(3))
    expected = before + delta.float() * gate
    assert relative_error(updated, expected) < 1e-6
    assert torch.equal(residual, before)
    normed = torch.nn.functional.rms_norm(expected, (1024,), eps=1e-6) * (1 + scale) + shift
    assert relative_error(out, normed) < 5e-3


@gpu
@pytest.mark.parametrize('frozen', [0, 3, 50])
@pytest.mark.parametrize('product', [False, True])
def test_a_flow_step(operators, frozen, product):
    inputs, step = GuideInputs(NANO_PI05, torch.device('cuda')), 4
    inputs.write(random_guide(NANO_PI05, 'identity', 30))
    inputs.frozen.fill_(frozen)
    actions, velocity = normal(50, 32), normal(50, 32)
    jacobian = normal(50, 32) if product else None
    expected, free = actions.double(), actions - 0.1 * velocity
    PlainOperators().flow_step(expected, velocity.double(), inputs, step, jacobian)
    operators.flow_step(actions, velocity, inputs, step, jacobian)
    assert relative_error(actions, expected) < 1e-6
    assert torch.equal(actions[:frozen], inputs.target[:frozen])
    if frozen <= 30 and not product:
        assert relative_error(actions[30:], free[30:]) < 1e-7


@gpu
def test_an_unguided_step_is_the_plain_one_to_the_last_bit(operators):
    inputs, actions, velocity = GuideInputs(NANO_PI05, torch.device('cuda')), normal(50, 32), normal(50, 32)
    expected = actions.clone().sub_(velocity, alpha=0.1)
    operators.flow_step(actions, velocity, inputs, 4)
    assert torch.equal(actions, expected)
