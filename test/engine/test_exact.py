"""The true vector-Jacobian product of the action expert: its parts against autograd in float64, the loop
against the plain model, the kernels against the parts."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.expert_trial import ExpertTrial, TrialShape, exact_loop, small_policy
from engine.plain_backward import PlainBackwardOperators
from engine.plain_operators import PlainOperators
from engine.reference import NANO_PI0, cosine, normal, poisoned, random_guide, relative_error
from engine.test_engine import Case
from engine.test_guidance import PlainCase, without_towers
from engine.test_towers import RecordingLibrary
from flashrt_ros.engine import builds
from flashrt_ros.engine.buffers import PrefixCache, rotary_table
from flashrt_ros.engine.expert.back import COLUMNS, gate_order, norm_scales, pack_back, turned_order
from flashrt_ros.engine.expert.exact import ExactDenoise, back_format, exact_bytes, own_weights, refusal
from flashrt_ros.engine.expert.layout import step_order
from flashrt_ros.engine.operators import attention_sm90
from flashrt_ros.engine.operators import backward as backward_operators
from flashrt_ros.engine.operators.backward import (
    BOX,
    MOST_STEPS,
    AttentionScratch,
    BackwardOperators,
    product_parts,
)
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.towers.denoise import PlainDenoise
from flashrt_ros.engine.weights.packing import pack_expert
from flashrt_ros.engine.weights.store import load_exact, pack, pack_exact
from flashrt_ros.models.guidance import Guide
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import NANO_PI05

gpu = pytest.mark.gpu
PLAIN = PlainBackwardOperators()
SPECS = {'pi05': NANO_PI05, 'pi0': NANO_PI0}

EXACT = 1e-12
"""Relative error in float64 of formulas that are equal."""

ROUNDED = 8e-3
"""Of kernels that round their result and one operand of each product to bf16, 2^-9 each, and add them up."""


def doubles(*shapes):
    torch.manual_seed(3)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_back_through_a_norm_is_the_derivative():
    x, upstream, before = doubles((7, 24), (7, 24), (7, 24))
    scale, shift, gate = torch.randn(3, 24, dtype=torch.float64)
    normed = F.rms_norm(x, (24,), eps=1e-6) * (1 + scale) + shift
    expected = torch.autograd.grad(normed, x, upstream)[0] + before
    gradient, out = before.detach().clone(), torch.empty(7, 24, dtype=torch.float64)
    parts = torch.stack([0.3 * upstream, 0.7 * upstream]).detach()
    PLAIN.norm(x.detach(), parts, gradient, out, scale=scale, gate=gate)
    assert relative_error(gradient, expected) < EXACT
    assert relative_error(out, expected * gate) < EXACT


def test_back_through_the_gate_is_the_derivative():
    x, upstream = doubles((7, 48), (7, 24))
    gate, up = x.chunk(2, -1)
    expected = torch.autograd.grad(F.gelu(gate, approximate='tanh') * up, x, upstream)[0]
    out = torch.empty_like(x)
    PLAIN.gelu_gate(x.detach(), torch.stack([0.3 * upstream, 0.7 * upstream]).detach(), out)
    assert relative_error(out, expected) < EXACT


@pytest.mark.parametrize('constant', [0, 1])
def test_back_through_attention_is_the_derivative(constant):
    rows, heads, dim, length = 5, 3, 8, 11
    fixed = length + constant
    qkv, upstream, k, v = doubles((rows, (heads + 2) * dim), (rows, heads * dim), (64, dim), (64, dim))
    table = rotary_table(64, dim, torch.device('cpu')).double()
    cos, sin = table[fixed : fixed + rows, None].unbind(-1)
    a, b = qkv.unflatten(1, (-1, dim)).chunk(2, -1)
    rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    queries = rotated[:, :heads].flatten(1)
    keys = torch.cat([k[:fixed].detach(), rotated[:, heads]])
    values = torch.cat([v[:fixed].detach(), qkv[:, (heads + 1) * dim :]])
    split = queries.unflatten(1, (heads, dim)).transpose(0, 1)
    logits = split @ keys.T / dim**0.5
    attended = (torch.softmax(logits, -1) @ values).transpose(0, 1).flatten(1)
    expected = torch.autograd.grad(attended, qkv, upstream)[0]
    out = torch.empty_like(qkv)
    given = [x.detach() for x in (queries, keys, values)]
    results = attended.detach(), logits.detach().logsumexp(-1).T / math.log(2)
    PLAIN.attention(*given, results, torch.tensor([length]), table, upstream.detach(), out, None, constant)
    assert relative_error(out, expected) < EXACT


class ExactCase(PlainCase):
    """The exact loop on the CPU behind a random prefix, and the plain model on the same weights."""

    def __init__(self, spec):
        super().__init__(spec)
        packed, spec = pack(random_tensors(self.spec, 1), self.spec, 'bf16'), self.spec
        operators, cache = PlainOperators(), self.loop.cache
        forward = PlainDenoise(operators, spec, packed, {}, cache, keeps=True)
        self.loop = ExactDenoise(operators, PLAIN, forward, packed, cache)

    def after_a_step(self, guide):
        self.loop.guide.write(guide)
        self.loop.actions.copy_(self.noise)
        self.loop.state.copy_(self.state)
        with torch.inference_mode():
            self.loop.step(0)
        return self.loop.actions.clone()


@pytest.mark.parametrize('spec', SPECS.values(), ids=SPECS)
def test_the_product_is_that_of_autograd(spec):
    """Of the first step: bf16 forward and back against the plain model in float64."""
    case = ExactCase(spec)
    upstream, free, steps = torch.randn(case.noise.shape), case.after_a_step(None), case.spec.steps
    # Pulled by `upstream` from the clean chunk that the step predicts, actions move by upstream - product.
    target = case.noise + steps * (free - case.noise) + upstream
    guide = Guide('exact', target[None], torch.ones_like(free), 0, (1.0,) * steps)
    found = upstream - steps * (case.after_a_step(guide) - free)
    start = case.noise.double().requires_grad_()
    expected = torch.autograd.grad(case.expected_velocity(start), start, upstream.double())[0]
    assert relative_error(found, expected) < 0.02
    assert cosine(found, expected) > 0.9998


@pytest.mark.parametrize('spec', SPECS.values(), ids=SPECS)
def test_the_exact_loop_guides_as_the_plain_model(spec):
    case = ExactCase(spec)
    free, expected_free = case.found(None), case.expected(None)
    guide = random_guide(case.spec, 'exact', 12)
    found, expected = case.found(guide), case.expected(guide)
    assert relative_error(found - free, expected - expected_free) < 0.02
    identity = case.expected(replace(guide, method='identity'))
    assert relative_error(identity - expected_free, expected - expected_free) > 0.05


@pytest.mark.parametrize('spec', SPECS.values(), ids=SPECS)
@pytest.mark.parametrize('capability', [(8, 0), (9, 0), (12, 0)])
def test_the_kernels_compiled_beforehand_are_those_that_run(capability, spec, monkeypatch):
    for module in (attention_sm90, backward_operators):
        monkeypatch.setattr(module, 'tensor_map', lambda *_: None)  # a driver's work
    library, spec = RecordingLibrary(capability), replace(without_towers(spec), horizon=50)
    packed, cache = (
        pack(random_tensors(spec, 1), spec, 'bf16'),
        PrefixCache.allocate(spec, 1, torch.device('cpu')),
    )
    forward = PlainDenoise(Operators(library), spec, packed, {}, cache, keeps=True)
    ExactDenoise(forward.operators, BackwardOperators(library), forward, packed, cache).run()
    compiled = builds.exact_builds(library.gpu, spec, 'bf16', 1)
    assert library.asked <= {(file, tuple(sorted(constants.items()))) for file, constants in compiled}
    used = {'attention_backward', 'norm_backward', 'exact_ends', 'norm', 'rope', 'gemma_attention'}
    assert {file for file, _ in library.asked} >= used


@pytest.mark.parametrize(
    ('depth', 'columns', 'parts'),
    [(8192, 1024, 8), (1024, 4096, 2), (2560, 1024, 8), (1024, 2048, 4), (64, 64, 1)],
)
def test_products_occupy_the_gpu_and_fit_a_block(depth, columns, parts):
    assert product_parts(depth, columns) == parts
    assert depth % (parts * BOX) == 0
    assert depth // BOX // parts <= MOST_STEPS


def test_weights_for_it_are_packed_once_and_are_those_of_the_plain_loop(tmp_path):
    machine = SimpleNamespace(device=torch.device('cpu'), capability=(8, 0), multiprocessors=100)
    tensors, asked = random_tensors(NANO_PI05, 1), []
    given = lambda: asked.append(1) or tensors  # noqa: E731
    first, second = (load_exact('key', NANO_PI05, 'bf16', machine, given, tmp_path) for _ in range(2))
    assert len(asked) == 1
    plain = pack_expert(tensors, NANO_PI05, 'bf16')
    assert own_weights(first).keys() == {*first, *plain}
    assert all(torch.equal(own_weights(second)[name], value) for name, value in plain.items())
    size = sum(value.numel() * value.element_size() for value in first.values())
    assert size == exact_bytes(NANO_PI05)


@pytest.mark.parametrize(('form', 'tensors'), [('bf16', 4), ('fp8', 8)])
def test_weights_for_one_kernel_take_as_much_memory_as_is_said(form, tensors):
    spec = small_policy('pi05', TrialShape(layers=1))
    packed = pack_exact(random_tensors(spec, 1), spec, fused=True, form=form)
    size = sum(value.numel() * value.element_size() for value in packed.values())
    assert size == exact_bytes(spec, form)
    assert len(packed) == tensors


@pytest.mark.parametrize(
    ('family', 'precision', 'capability', 'form'),
    [
        ('pi05', 'fp8', (9, 0), 'fp8'),
        ('pi05', 'bf16', (9, 0), 'bf16'),
        ('pi0', 'fp8', (9, 0), 'bf16'),  # its loop is in integers
        ('pi05', 'fp8', (8, 9), 'bf16'),  # the chain of kernels
        ('pi05', 'fp8', (12, 0), 'bf16'),
    ],
)
def test_the_way_back_is_in_8_bits_where_the_loop_is_in_e4m3(family, precision, capability, form):
    machine = SimpleNamespace(capability=capability, multiprocessors=132)
    assert back_format(machine, small_policy(family, TrialShape()), precision) == form


def test_weights_in_8_bits_are_kept_apart_from_those_in_bf16(tmp_path):
    spec = small_policy('pi05', TrialShape(layers=1))
    machine = SimpleNamespace(device=torch.device('cpu'), capability=(9, 0), multiprocessors=132)
    tensors = random_tensors(spec, 1)
    packed = {
        form: load_exact('key', spec, form, machine, lambda: tensors, tmp_path) for form in ('bf16', 'fp8')
    }
    for form, found in packed.items():
        again = load_exact('key', spec, form, machine, lambda: pytest.fail('packed twice'), tmp_path)
        assert again.keys() == found.keys()
        assert all(torch.equal(again[name], value) for name, value in found.items())
    assert packed['bf16'].keys() != packed['fp8'].keys()


@pytest.mark.parametrize('part', ['qkv', 'o', 'gate_up', 'down'])
def test_weights_of_the_way_back_in_8_bits(part):
    """Each block's bytes are those columns of the result, in steps of 32 values of K."""
    rows, columns = {'qkv': (2560, 1024), 'o': (1024, 2048), 'gate_up': (8192, 1024), 'down': (1024, 4096)}[
        part
    ]
    weight = torch.randn(rows, columns) * torch.logspace(-3, 3, columns)
    packed, scale = pack_back(part, weight, 'fp8')
    width, order = COLUMNS[part]
    steps = packed.view(columns // width, rows // 32, 2, width // 8, 8, 16).view(torch.float8_e4m3fn)
    by_column = steps.permute(0, 3, 4, 1, 2, 5).reshape(columns, rows // 32, 32).float()
    found = torch.empty_like(by_column)
    found[..., step_order(order, 32)] = by_column
    found = found.reshape(columns, rows) * scale[:, None]
    whole = {'qkv': turned_order, 'gate_up': gate_order}.get(part)
    expected = weight.t() if whole is None else weight.t()[:, whole()]
    assert relative_error(found, expected) < 0.03
    assert ((found - expected).norm(dim=1) < 0.035 * expected.norm(dim=1)).all()


def test_what_a_norm_multiplies_by_has_the_scales_of_the_weights_behind_it():
    scale = torch.randn(3, 5, 4)
    weights = {'qkv_scale': torch.rand(2, 4), 'gate_up_scale': torch.rand(2, 4)}
    out = norm_scales(scale, weights)
    assert torch.equal(out[:, 0], weights['qkv_scale'][0].expand(3, -1))  # its own comes later
    assert torch.equal(out[:, 2], scale[:, 2] * weights['qkv_scale'][1])
    for layer in range(2):
        assert torch.equal(out[:, 2 * layer + 1], scale[:, 2 * layer + 1] * weights['gate_up_scale'][layer])
    assert norm_scales(scale, {}) is scale


@pytest.mark.parametrize(('dim', 'refused'), [(256, False), (64, False), (32, True), (80, True)])
def test_heads_without_kernels_are_refused_with_the_reason(dim, refused):
    reason = refusal(replace(NANO_PI05, expert=replace(NANO_PI05.expert, head_dim=dim)))
    assert (f'not of {dim}' in reason) == refused


@pytest.mark.parametrize(
    ('width', 'actions', 'named'), [(2048, 32, '2048'), (192, 32, '192'), (1024, 7, '7')]
)
def test_ends_without_kernels_are_refused_with_the_reason(width, actions, named):
    spec = replace(NANO_PI05, expert=replace(NANO_PI05.expert, width=width), action_dim=actions)
    assert named in refusal(spec)


@gpu
@pytest.mark.parametrize(
    ('depth', 'columns'), [(8192, 1024), (1024, 4096), (2560, 1024), (1024, 2048), (64, 64)]
)
def test_product_kernel(library, depth, columns):
    operators = BackwardOperators(library)
    gradient, weight = (normal(*sizes, dtype=torch.bfloat16) for sizes in ((64, depth), (depth, columns)))
    parts = operators.parts(weight, 64)
    for count in {1, parts} if depth <= 1024 else {parts}:
        out = poisoned(count, 64, columns)
        operators.product(gradient, weight, out)
        assert relative_error(out.double().sum(0), gradient.double() @ weight.double()) < ROUNDED


@gpu
@pytest.mark.parametrize(('depth', 'columns'), [(1024, 4096), (128, 256), (2048, 256)])
def test_gated_product_kernel(library, depth, columns):
    gradient, weight, x = (
        normal(*sizes, dtype=torch.bfloat16, scale=scale)
        for sizes, scale in (((64, depth), 1), ((depth, columns), depth**-0.5), ((64, 2 * columns), 2))
    )
    hidden, out = poisoned(2, 64, columns), poisoned(64, 2 * columns)
    expected = torch.empty(64, 2 * columns, dtype=torch.float64, device='cuda')
    product = gradient.double() @ weight.double()
    PLAIN.gelu_gate(x.double(), product[None], expected)
    BackwardOperators(library).gated_product(gradient, weight, x, hidden, out)
    assert relative_error(out, expected) < 2 * ROUNDED


@gpu
@pytest.mark.parametrize(('rows', 'width', 'parts'), [(1, 128, 1), (50, 1024, 8), (51, 1024, 3)])
def test_norm_kernel(library, rows, width, parts):
    x, gradient, scale, gate = normal(rows, width, scale=3), normal(rows, width), normal(width), normal(width)
    upstream = normal(parts, 64, width, dtype=torch.bfloat16)[:, 64 - rows :]
    out = poisoned(rows, width)
    expected, expected_out = gradient.double(), torch.empty(rows, width, dtype=torch.float64, device='cuda')
    wide = x.double(), upstream.double()
    PLAIN.norm(*wide, expected, expected_out, scale=scale, gate=gate)
    operators = BackwardOperators(library)
    operators.norm(x, upstream, gradient, out, scale=scale, gate=gate)
    assert relative_error(gradient, expected) < 1e-5
    assert relative_error(out, expected_out) < ROUNDED
    bare, expected = gradient.clone(), gradient.double()
    PLAIN.norm(*wide, expected, None)
    operators.norm(x, upstream, bare, None)
    assert relative_error(bare, expected) < 1e-5


@gpu
@pytest.mark.parametrize(('rows', 'width', 'parts'), [(1, 256, 1), (64, 4096, 2)])
def test_gate_kernel(library, rows, width, parts):
    x, upstream = (
        normal(rows, 2 * width, dtype=torch.bfloat16),
        normal(parts, rows, width, dtype=torch.bfloat16),
    )
    out, expected = (
        poisoned(rows, 2 * width),
        torch.empty(rows, 2 * width, dtype=torch.float64, device='cuda'),
    )
    PLAIN.gelu_gate(x.double(), upstream.double(), expected)
    BackwardOperators(library).gelu_gate(x, upstream, out)
    assert relative_error(out, expected) < ROUNDED


def attended_results(queries, keys, values, total, dtype=None):
    """Of the forward pass: [rows, heads * dim] in bf16, and log2 of the sums of exponentials [rows, heads] in
    fp32, or both in `dtype`."""
    split = queries.double().unflatten(1, (-1, keys.shape[1]))
    logits = split @ keys[:total].double().T / keys.shape[1] ** 0.5
    attended = torch.softmax(logits, -1) @ values[:total].double()
    sums = logits.logsumexp(-1) / math.log(2)
    return attended.flatten(1).to(dtype or torch.bfloat16), sums.to(dtype or torch.float32)


@gpu
@pytest.mark.parametrize('constant', [0, 1])
@pytest.mark.parametrize(
    ('rows', 'length', 'dim'), [(50, 562, 256), (50, 590, 256), (1, 1, 256), (63, 64, 64), (10, 701, 64)]
)
def test_attention_kernels(library, rows, length, dim, constant):
    heads, capacity = 8, 832
    queries, upstream = (normal(rows, heads * dim, dtype=torch.bfloat16, scale=s) for s in (2, 1))
    keys, values = (normal(capacity, dim, dtype=torch.bfloat16) for _ in range(2))
    table = rotary_table(capacity, dim, torch.device('cuda'))
    count = torch.tensor([length], dtype=torch.int32, device='cuda')
    scratch = AttentionScratch(heads, dim, rows, capacity, torch.device('cuda'))
    for part in (scratch.query_parts, scratch.key_parts, scratch.value_parts):
        part.fill_(float('nan'))
    out, expected = poisoned(rows, (heads + 2) * dim), poisoned(rows, (heads + 2) * dim, dtype=torch.float64)
    results = attended_results(queries, keys, values, length + constant + rows)
    given = [x.double() for x in (queries, keys, values)]
    wide = attended_results(*given, length + constant + rows, torch.float64)
    PLAIN.attention(*given, wide, count, table, upstream.double(), expected, None, constant)
    operators = BackwardOperators(library)
    operators.attention(queries, keys, values, results, count, table, upstream, out, scratch, constant)
    for part in (slice(0, heads * dim), slice(heads * dim, -dim), slice(-dim, None)):  # of q, k and v
        assert relative_error(out[:, part], expected[:, part]) < 2 * ROUNDED


@gpu
@pytest.mark.parametrize('spec', SPECS.values(), ids=SPECS)
def test_the_engine_takes_exact_guidance(library, spec):
    case = Case(library, spec, 'bf16', exact=True)
    observation = case.observation()
    free, expected_free = case.found(observation), case.expected(observation)
    for rows in (3, 50):
        guide = random_guide(spec, 'exact', rows)
        found, expected = case.found(observation, guide), case.expected(observation, guide)
        assert relative_error(found - free, expected - expected_free) < 0.03
        assert torch.equal(case.found(observation, guide), found)
    assert torch.equal(case.found(observation), free)


@gpu
@pytest.mark.parametrize(
    ('family', 'precision', 'fused'),
    [
        ('pi05', 'bf16', False),
        ('pi0', 'bf16', False),
        ('pi05', 'bf16', True),
        ('pi0', 'bf16', True),
        ('pi05', 'fp8', True),
    ],
)
def test_exact_guidance_at_published_width(library, family, precision, fused):
    trial = ExpertTrial(library, family, precision, TrialShape())
    noise, state = trial.observe(562)
    guide, loop = random_guide(trial.spec, 'exact', 20, 'cuda'), exact_loop(trial, fused)
    found = {}
    for name, given in (('free', None), ('guided', guide), ('again', guide)):
        loop.guide.write(given)
        loop.actions.copy_(noise)
        loop.state.copy_(state)
        with torch.no_grad():
            loop.run()
        found[name] = loop.actions.clone()
    assert torch.equal(found['again'], found['guided'])
    free, guided = trial.expected(noise, state), trial.expected(noise, state, guide=guide)
    assert cosine(found['free'] - noise, free - noise) > (0.9999 if precision == 'bf16' else 0.996)
    assert cosine(found['guided'] - found['free'], guided - free) > (0.999 if precision == 'bf16' else 0.99)
