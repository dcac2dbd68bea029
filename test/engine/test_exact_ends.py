"""The ends of a flow step with exact guidance against autograd in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from engine.reference import normal, poisoned, random_guide, relative_error
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators.exact_ends import ExactEnds
from flashrt_ros.engine.operators.forward import Modulation
from flashrt_ros.models.spec import NANO_PI05

gpu = pytest.mark.gpu
WIDTH, ACTIONS, STEPS, STEP = 1024, 32, 10, 3


class Case:
    """Random inputs of one flow step of a chunk of 50 rows."""

    def __init__(self, library):
        spec = replace(NANO_PI05, horizon=50, action_dim=ACTIONS, steps=STEPS)
        self.guide, self.time = GuideInputs(spec, torch.device('cuda')), 1 - STEP / STEPS
        self.guide.write(random_guide(spec, 'exact', 20))
        self.actions, self.x = normal(50, ACTIONS), normal(50, WIDTH, scale=3)
        self.weight, self.bias = normal(ACTIONS, WIDTH, scale=0.05), normal(ACTIONS)
        self.modulation = Modulation(*normal(3, WIDTH, scale=0.3), None, 0)
        self.velocity, self.gradient = (poisoned(50, size, dtype=torch.float32) for size in (ACTIONS, WIDTH))
        self.ends = ExactEnds(library, self.actions, self.velocity, self.guide, self.gradient)

    def pull(self, velocity):
        return self.guide.weights.double() * (self.guide.target - (self.actions - self.time * velocity))


def normed(x, modulation):
    y = F.rms_norm(x, (WIDTH,), eps=1e-6)
    return (
        y
        if modulation is None
        else y * (1 + modulation.scale) + (0 if modulation.shift is None else modulation.shift)
    )


@gpu
@pytest.mark.parametrize('modulated', [False, True])
def test_begin(library, modulated):
    case, out = Case(library), poisoned(50, WIDTH)
    modulation, gate = (case.modulation, normal(WIDTH)) if modulated else (None, None)
    case.ends.begin(STEP, case.x, modulation, gate, case.weight, case.bias, out)
    x = case.x.double().requires_grad_()
    velocity = normed(x, modulation) @ case.weight.double().T + case.bias
    expected = torch.autograd.grad(velocity, x, case.pull(velocity.detach()))[0]
    assert relative_error(case.velocity, velocity.detach()) < 1e-5
    assert relative_error(case.gradient, expected) < 1e-5
    assert relative_error(out, expected * (1 if gate is None else gate)) < 4e-3


@gpu
@pytest.mark.parametrize('parts', [1, 2, 5])
def test_end(library, parts):
    case = Case(library)
    case.velocity.copy_(normal(50, ACTIONS))
    case.gradient.copy_(normal(50, WIDTH))
    upstream = normal(parts, 64, WIDTH, dtype=torch.bfloat16)[:, :50]
    x, velocity = case.x.double().requires_grad_(), case.velocity.double()
    arriving = upstream.double().sum(0)
    through = torch.autograd.grad(normed(x, case.modulation), x, arriving)[0]
    product = (case.gradient.double() + through) @ case.weight.double().T
    pull = case.pull(velocity) - case.time * product
    expected = case.actions.double() - (velocity - case.guide.gammas[STEP] * pull) / STEPS
    moved = expected - case.actions.double()
    before = case.actions.clone()
    case.ends.end(STEP, case.x, upstream, case.modulation.scale, case.weight)
    assert relative_error(case.actions - before, moved) < 1e-5
