"""Each phase of the way back through the action expert's layers against plain torch: fresh random inputs,
pending outputs, odd sizes."""

import math

import pytest
import torch

from engine.expert_reference import (
    flat_fragments,
    flat_rows,
    from_fragments,
    kept_attended,
    kept_gate_up,
    kept_log_sums,
    kept_tiles,
    to_fragments,
)
from engine.plain_backward import PlainBackwardOperators
from engine.reference import normal, poisoned, relative_error
from flashrt_ros.engine.buffers import rotary_table
from flashrt_ros.engine.expert.arguments import LAYER, Phase
from flashrt_ros.engine.expert.back import (
    back_buffers,
    back_constants,
    gate_order,
    launch_back,
    norm_scales,
    pack_back,
    turned_order,
)
from flashrt_ros.engine.weights.formats import E4M3, quantise_rows

pytestmark = pytest.mark.gpu

PLAIN = PlainBackwardOperators()
ROUNDED = 5e-3
rows_of_interest = pytest.mark.parametrize('rows', [1, 10, 50, 51, 64])
both_forms = pytest.mark.parametrize('form', ['bf16', 'fp8'])
BF16 = torch.bfloat16
GRADIENTS = {'bf16': BF16, 'fp8': torch.float8_e5m2}
STORED = {'bf16': ROUNDED, 'fp8': 0.075}
"""Relative error of what is rounded to these. A value of E5M2 has two bits behind its first: the root of the
mean square of its error is 2 ** -3 / 3 ** 0.5 of it at most."""


class Phases:
    """Two layers, of which `run` executes some phases of one, in the first half of each exchange buffer."""

    def __init__(self, library, rows, form='bf16'):
        self.library, self.rows, self.form = library, rows, form
        self.exchange = back_buffers(rows, 'cuda', form)[1]
        self.initial = {name: values.clone() for name, values in self.exchange.items()}
        self.x, self.gradient = normal(5, 64, 1024, scale=3), normal(64, 1024)
        self.scale, self.gate = normal(3, 5, 1024), normal(3, 5, 1024)
        self.gate_up = normal(2, 64, 8192, dtype=BF16, scale=2)
        self.arriving = poisoned(64, 1024)
        self.length = torch.tensor([777], dtype=torch.int32, device='cuda')
        ones = torch.ones(2, 1024, device='cuda')
        self.weights = {} if form == 'bf16' else {'qkv_scale': ones, 'gate_up_scale': ones}

    def weight(self, part, out, columns):
        """Of both layers, as they are multiplied by; packed for `run`."""
        both = [normal(out, columns, dtype=BF16, scale=out**-0.5) for _ in range(2)]
        packed = [pack_back(part, each, self.form) for each in both]
        self.weights[part] = torch.stack([values for values, _ in packed])
        if self.form == 'bf16':
            return [each.double() for each in both]
        self.weights[f'{part}_scale'] = torch.stack([scale for _, scale in packed])
        rounded = [quantise_rows(each.t(), E4M3) for each in both]
        return [(values.double() * scale[:, None]).t() for values, scale in rounded]

    def gradients(self, columns):
        """Random ones of 64 rows, as products take them."""
        return normal(64, columns, dtype=BF16).to(GRADIENTS[self.form])

    def give(self, name, values, order='linear'):
        raw = to_fragments(values, order)
        self.exchange[name][0, : len(raw)] = raw

    def fragments(self, name, columns, order, half=0):
        return from_fragments(self.taken(name, half), GRADIENTS[self.form], columns, order)

    def run(self, phases, layer=1, last=None, **arguments):
        squares = self.x.square().view(5, 64, 32, 32).sum(-1)
        x = torch.stack([self.x[0], *map(kept_tiles, self.x[1:4]), self.x[4]])
        gate_up = torch.stack([kept_gate_up(each) for each in self.gate_up])
        packed = {
            f'{"output" if part == "o" else part}_weights': self.weights.get(part)
            for part in ('qkv', 'o', 'gate_up', 'down')
        }
        launch_back(
            self.library, back_constants(self.form), **self.exchange, **packed,
            output_scale=self.weights.get('o_scale'), down_scale=self.weights.get('down_scale'),
            scale=norm_scales(self.scale, self.weights), gate=self.gate, x=x, squares=squares,
            gate_up=gate_up, gradient=self.gradient, arriving=self.arriving, length=self.length,
            layers=2, rows=self.rows, table_row=2, first=layer, last=layer if last is None else last,
            phases=phases, **arguments,
        )()  # fmt: skip
        torch.cuda.synchronize()

    def taken(self, name, half=0):
        assert torch.equal(self.exchange[name][1 - half], self.initial[name][1 - half])
        return self.exchange[name][half]

    def through_norm(self, norm, upstream, rows=None):
        """(gradient, what is given to the product in front), of `gradient` as it was."""
        gradient, out = self.gradient.double(), torch.empty(64, 1024, dtype=torch.float64, device='cuda')
        tables = {'scale': self.scale[2, norm].double() - 1, 'gate': self.gate[2, norm - 1].double()}
        PLAIN.norm(self.x[norm].double(), upstream[None], gradient, out, **tables)
        return gradient[: rows or self.rows], out[: rows or self.rows]


@rows_of_interest
@both_forms
def test_through_the_gate(library, rows, form):
    phases = Phases(library, rows, form)
    given, weight = phases.gradients(1024), phases.weight('down', 1024, 4096)[1]
    phases.give('gated_down', given)
    phases.run(Phase.DOWN)
    expected = torch.empty(64, 8192, dtype=torch.float64, device='cuda')
    PLAIN.gelu_gate(phases.gate_up[1].double(), (given.double() @ weight)[None], expected)
    found = torch.empty(64, 8192, device='cuda')
    found[:, gate_order().cuda()] = phases.fragments('hidden', 8192, 'accumulator')
    assert relative_error(found[:rows], expected[:rows]) < STORED[form]


@rows_of_interest
@both_forms
@pytest.mark.parametrize(('part', 'depth'), [('gate_up', 8192), ('qkv', 2560)])
def test_through_a_norm(library, part, depth, rows, form):
    phases = Phases(library, rows, form)
    given, weight = phases.gradients(depth), phases.weight(part, depth, 1024)[1]
    norm = 3 if part == 'gate_up' else 2
    expected, expected_out = phases.through_norm(norm, given.double() @ weight)
    if part == 'gate_up':
        phases.give('hidden', given[:, gate_order().cuda()].contiguous(), 'accumulator')
        phases.run(Phase.GATE_UP)
        out = phases.fragments('gated_output', 1024, 'linear')
    else:
        phases.give('turned', in_turned_order(given, form), 'accumulator')
        phases.run(Phase.QKV)
        out = phases.fragments('gated_down', 1024, 'linear', half=1)
    assert relative_error(phases.gradient[:rows], expected) < ROUNDED
    assert relative_error(out[:rows], expected_out) < STORED[form]
    dots = phases.taken(f'{part}_dots')
    if form == 'bf16':
        dots = dots.view(torch.float32).view(256, 64)
    else:
        dots = dots.view(BF16).view(4, 256, 8, 2).permute(1, 0, 3, 2).reshape(256, 64)
    product = (given.double() @ weight * phases.scale[2, norm] * phases.x[norm])[:rows].sum(1)
    dots = dots.double()[:, :rows]
    assert (dots.sum(0) - product).norm() < ROUNDED * dots.norm()  # of parts that may cancel


def in_turned_order(gradient, form):
    return gradient[:, turned_order().cuda()].contiguous() if form == 'fp8' else gradient


def out_of_turned_order(fragments, form):
    if form == 'bf16':
        return fragments
    out = torch.empty_like(fragments)
    out[:, turned_order().cuda()] = fragments
    return out


@rows_of_interest
@both_forms
def test_to_the_first_norm(library, rows, form):
    phases = Phases(library, rows, form)
    given, weight = phases.gradients(2560), phases.weight('qkv', 2560, 1024)[0]
    phases.give('turned', in_turned_order(given, form), 'accumulator')
    phases.run(Phase.QKV, layer=0)
    assert relative_error(phases.arriving[:rows], (given.double() @ weight)[:rows]) < ROUNDED
    assert phases.arriving[rows:].isnan().all()
    phases.taken('gated_down', 1), phases.taken('qkv_dots')


@rows_of_interest
@both_forms
def test_through_the_output_projection(library, rows, form):
    phases = Phases(library, rows, form)
    given, weight = phases.gradients(1024), phases.weight('o', 1024, 2048)[1]
    phases.give('gated_output', given)
    phases.run(Phase.OUTPUT)
    found = flat_rows(phases.taken('upstream').view(BF16), rows).transpose(0, 1).flatten(1)
    assert relative_error(found, (given.double() @ weight)[:rows]) < ROUNDED


def forward_results(queries, keys, values):
    """Of attention, as the forward pass keeps them: its result [rows, 2048] in bf16, and log2 of its sums of
    exponentials [rows, 8] in fp32. These are compared with: the gradient of a query that sees nearly nothing
    but one of two keys is a small difference, which the rounding of the result alone may change much."""
    split = queries.double().unflatten(1, (8, 256)).transpose(0, 1)
    logits = split @ keys.double().T / 16
    attended = (logits.softmax(-1) @ values.double()).transpose(0, 1).flatten(1)
    return attended.to(BF16), (logits.logsumexp(-1).T / math.log(2)).float()


@rows_of_interest
@both_forms
@pytest.mark.parametrize('first', [0, 1])
@pytest.mark.parametrize('length', [1, 37, 562, 712, 968])
def test_through_attention(library, rows, length, first, form):
    """first: rows that are constant, pi0's state token."""
    phases, capacity = Phases(library, rows, form), 1088
    keys, values = (poisoned(2, capacity, 256) for _ in range(2))
    keys[:, : length + rows], values[:, : length + rows] = normal(2, 2, length + rows, 256).to(BF16)
    queries, upstream = normal(2, 64, 2048, dtype=BF16, scale=2), normal(rows, 2048, dtype=BF16)
    upstream[:first] = 0
    seen = slice(0, length + rows)
    attended, sums = forward_results(queries[1, :rows], keys[1, seen], values[1, seen])
    results, log_sums = poisoned(2, 64 * 2048), poisoned(2, 512, dtype=torch.float32)
    results[1], log_sums[1] = kept_attended(attended), kept_log_sums(sums)
    rotary = rotary_table(capacity, 256, torch.device('cuda'))
    raw = flat_fragments(upstream.unflatten(1, (8, 256)).transpose(0, 1)).view(torch.uint8).flatten()
    phases.exchange['upstream'][0] = torch.where(phases.initial['upstream'][0] == 0, 0, raw)
    phases.length.fill_(length)
    phases.run(
        Phase.ATTENTION, queries=queries, keys=keys, values=values, attended=results, log_sums=log_sums,
        rotary=rotary, capacity=capacity, state_token=first,
    )  # fmt: skip
    found = out_of_turned_order(phases.fragments('turned', 2560, 'accumulator'), form)[:rows]
    assert not found[:first].any()
    if rows == first:
        return
    expected = torch.empty(rows - first, 2560, dtype=torch.float64, device='cuda')
    results = attended[first:], sums[first:]
    given = [x.double() for x in (queries[1, first:rows], keys[1], values[1])]
    PLAIN.attention(*given, results, phases.length, rotary, upstream[first:].double(), expected, None, first)
    for part in (slice(0, 2048), slice(2048, 2304), slice(2304, None)):  # of q, k and v
        assert relative_error(found[first:, part], expected[:, part]) < max(3 * ROUNDED, STORED[form])


@rows_of_interest
@both_forms
@pytest.mark.parametrize('size', [1e-6, 1, 1e5])
def test_begins_with_the_gradient(library, rows, form, size):
    """In 8 bits times a power of two, so that gradients of any size are within their range."""
    phases = Phases(library, rows, form)
    phases.gradient *= size
    phases.run(Phase.ACTIONS_IN)
    found = phases.fragments('gated_down', 1024, 'linear')[:rows].double()
    expected = (phases.gradient * phases.gate[2, 3])[:rows].double()
    octaves = 0 if form == 'bf16' else round(math.log2(found.norm() / expected.norm()))
    assert relative_error(found, expected * 2.0**octaves) < STORED[form]
    assert form == 'bf16' or 16 <= phases.gradient[:rows].abs().max() * 2.0**octaves < 256


@both_forms
@pytest.mark.parametrize('first', [0, 1])
@pytest.mark.parametrize(('rows', 'length'), [(10, 37), (50, 562)])
def test_two_layers_with_all_phases(library, rows, length, first, form):
    """The gradient at the first norm of all, and the same bits again. first: as above."""
    capacity = 640
    phases = Phases(library, rows, form)
    shapes = {'qkv': (2560, 1024), 'o': (1024, 2048), 'gate_up': (8192, 1024), 'down': (1024, 4096)}
    weights = {part: phases.weight(part, *shape) for part, shape in shapes.items()}
    keys, values = (normal(2, capacity, 256, dtype=BF16) for _ in range(2))
    queries, rotary = (
        normal(2, 64, 2048, dtype=BF16, scale=2),
        rotary_table(capacity, 256, torch.device('cuda')),
    )
    attended, sums = (
        torch.stack(results)
        for results in zip(
            *(
                forward_results(queries[i], keys[i, : length + rows], values[i, : length + rows])
                for i in range(2)
            ),
            strict=True,
        )
    )
    phases.length.fill_(length)
    phases.gradient[:first] = 0
    given = {
        'queries': queries,
        'keys': keys,
        'values': values,
        'attended': torch.stack([kept_attended(each) for each in attended[:, :rows]]),
        'log_sums': torch.stack([kept_log_sums(each) for each in sums[:, :rows]]),
    }
    start, found = phases.gradient.clone(), []
    for _ in range(3):
        phases.gradient.copy_(start)
        phases.arriving.fill_(float('nan'))
        for name, initial in phases.initial.items():
            phases.exchange[name].copy_(initial)
        phases.run(
            LAYER | Phase.ACTIONS_IN,
            layer=1,
            last=0,
            rotary=rotary,
            capacity=capacity,
            state_token=first,
            **given,
        )
        found.append((phases.gradient[:rows].clone(), phases.arriving[:rows].clone()))
    assert all(torch.equal(a, b) for pair in found[1:] for a, b in zip(pair, found[0], strict=True))

    phases.gradient.copy_(start)
    out = start.double() * phases.gate[2, 3]
    for i in (1, 0):
        hidden = torch.empty(64, 8192, dtype=torch.float64, device='cuda')
        PLAIN.gelu_gate(phases.gate_up[i].double(), (out @ weights['down'][i])[None], hidden)
        arrived = hidden @ weights['gate_up'][i]
        gradient, out = phases.through_norm(2 * i + 1, arrived, 64)
        phases.gradient.copy_(gradient)
        own = slice(first, rows)
        turned = torch.zeros(64, 2560, dtype=torch.float64, device='cuda')
        PLAIN.attention(
            queries[i, own].double(), keys[i].double(), values[i].double(), (attended[i, own], sums[i, own]),
            phases.length, rotary, (out @ weights['o'][i])[own], turned[own], None, first,
        )  # fmt: skip
        arrived = turned @ weights['qkv'][i]
        if i:
            gradient, out = phases.through_norm(2 * i, arrived, 64)
            phases.gradient.copy_(gradient)
    most = 2e-2 if form == 'bf16' else 0.12  # four products one behind the other, each of rounded gradients
    assert relative_error(found[0][0], phases.gradient[:rows]) < most
    assert relative_error(found[0][1][first:], arrived[first:rows]) < most
    assert not found[0][0][:first].any()
