"""Each phase of the way back through the action expert's layers against plain torch: fresh random inputs,
pending outputs, odd sizes."""

import math

import pytest
import torch

from engine.expert_reference import flat_fragments, flat_rows, from_fragments, to_fragments
from engine.plain_backward import PlainBackwardOperators
from engine.reference import normal, poisoned, relative_error
from flashrt_ros.engine.buffers import rotary_table
from flashrt_ros.engine.expert.arguments import LAYER, Phase
from flashrt_ros.engine.expert.back import back_buffers, gate_order, launch_back, pack_back

pytestmark = pytest.mark.gpu

PLAIN = PlainBackwardOperators()
ROUNDED = 5e-3
rows_of_interest = pytest.mark.parametrize('rows', [1, 10, 50, 51, 64])
BF16 = torch.bfloat16


class Phases:
    """Two layers, of which `run` executes some phases of one, in the first half of each exchange buffer."""

    def __init__(self, library, rows):
        self.library, self.rows = library, rows
        self.exchange = back_buffers(rows, 'cuda')[1]
        self.initial = {name: values.clone() for name, values in self.exchange.items()}
        self.x, self.gradient = normal(5, 64, 1024, scale=3), normal(64, 1024)
        self.scale, self.gate = normal(3, 5, 1024), normal(3, 5, 1024)
        self.gate_up = normal(2, 64, 8192, dtype=BF16, scale=2)
        self.arriving = poisoned(64, 1024)
        self.length = torch.tensor([777], dtype=torch.int32, device='cuda')

    def weight(self, part, out, columns):
        """(of the second layer, both packed)."""
        both = [normal(out, columns, dtype=BF16, scale=out**-0.5) for _ in range(2)]
        return both[1].double(), torch.stack([pack_back(part, each) for each in both])

    def give(self, name, values, order='linear'):
        raw = to_fragments(values, order)
        self.exchange[name][0, : len(raw)] = raw

    def run(self, phases, layer=1, last=None, **arguments):
        squares = self.x.square().view(5, 64, 32, 32).sum(-1).transpose(1, 2).contiguous()
        launch_back(
            self.library, **self.exchange, x=self.x, squares=squares, scale=self.scale, gate=self.gate,
            gate_up=self.gate_up, gradient=self.gradient, arriving=self.arriving, length=self.length,
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
def test_through_the_gate(library, rows):
    phases, given = Phases(library, rows), normal(64, 1024, dtype=BF16)
    weight, packed = phases.weight('down', 1024, 4096)
    phases.give('gated_down', given)
    phases.run(Phase.DOWN, down_weights=packed)
    expected = torch.empty(64, 8192, dtype=torch.float64, device='cuda')
    PLAIN.gelu_gate(phases.gate_up[1].double(), (given.double() @ weight)[None], expected)
    found = torch.empty(64, 8192, device='cuda')
    found[:, gate_order().cuda()] = from_fragments(phases.taken('hidden'), BF16, 8192, 'accumulator')
    assert relative_error(found[:rows], expected[:rows]) < ROUNDED


@rows_of_interest
@pytest.mark.parametrize('part', ['gate_up', 'qkv'])
def test_through_a_product_and_its_norm(library, rows, part):
    phases, depth = Phases(library, rows), {'gate_up': 8192, 'qkv': 2560}[part]
    given, (weight, packed) = normal(64, depth, dtype=BF16), phases.weight(part, depth, 1024)
    norm = 3 if part == 'gate_up' else 2
    expected, expected_out = phases.through_norm(norm, given.double() @ weight)
    if part == 'gate_up':
        phases.give('hidden', given[:, gate_order().cuda()].contiguous(), 'accumulator')
        phases.run(Phase.GATE_UP, gate_up_weights=packed)
        out = phases.taken('gated_output')
    else:
        phases.give('turned', given, 'accumulator')
        phases.run(Phase.QKV, qkv_weights=packed)
        out = phases.taken('gated_down', half=1)
    assert relative_error(phases.gradient[:rows], expected) < ROUNDED
    assert relative_error(from_fragments(out, BF16, 1024, 'linear')[:rows], expected_out) < ROUNDED
    dots = phases.taken(f'{part}_dots').view(torch.float32).view(256, 64)[:, :rows]
    product = (given.double() @ weight * phases.scale[2, norm] * phases.x[norm])[:rows].sum(1)
    assert relative_error(dots.sum(0), product) < ROUNDED


@rows_of_interest
def test_to_the_first_norm(library, rows):
    phases, given = Phases(library, rows), normal(64, 2560, dtype=BF16)
    _, packed = phases.weight('qkv', 2560, 1024)
    weight = normal(2560, 1024, dtype=BF16, scale=0.02)
    packed[0] = pack_back('qkv', weight)
    phases.give('turned', given, 'accumulator')
    phases.run(Phase.QKV, layer=0, qkv_weights=packed)
    assert relative_error(phases.arriving[:rows], (given.double() @ weight.double())[:rows]) < ROUNDED
    assert phases.arriving[rows:].isnan().all()
    phases.taken('gated_down', 1), phases.taken('qkv_dots')


@rows_of_interest
def test_through_the_output_projection(library, rows):
    phases, given = Phases(library, rows), normal(64, 1024, dtype=BF16)
    weight, packed = phases.weight('o', 1024, 2048)
    phases.give('gated_output', given)
    phases.run(Phase.OUTPUT, output_weights=packed)
    found = flat_rows(phases.taken('upstream').view(BF16), rows).transpose(0, 1).flatten(1)
    assert relative_error(found, (given.double() @ weight)[:rows]) < ROUNDED


def forward_results(queries, keys, values):
    """Of attention: its result [rows, 2048], and log2 of its sums of exponentials [rows, 8], fp64."""
    split = queries.double().unflatten(1, (8, 256)).transpose(0, 1)
    logits = split @ keys.double().T / 16
    attended = (logits.softmax(-1) @ values.double()).transpose(0, 1).flatten(1)
    return attended, logits.logsumexp(-1).T / math.log(2)


@rows_of_interest
@pytest.mark.parametrize('first', [0, 1])
@pytest.mark.parametrize('length', [1, 37, 562, 712, 968])
def test_through_attention(library, rows, length, first):
    """first: rows that are constant, pi0's state token."""
    phases, capacity = Phases(library, rows), 1088
    keys, values = (poisoned(2, capacity, 256) for _ in range(2))
    keys[:, : length + rows], values[:, : length + rows] = normal(2, 2, length + rows, 256).to(BF16)
    queries, upstream = normal(2, 64, 2048, dtype=BF16, scale=2), normal(rows, 2048, dtype=BF16)
    upstream[:first] = 0
    seen = slice(0, length + rows)
    attended, sums = forward_results(queries[1, :rows], keys[1, seen], values[1, seen])
    kept_attended, log_sums = poisoned(2, 64, 2048), poisoned(2, 64, 8, dtype=torch.float32)
    kept_attended[1, :rows], log_sums[1, :rows] = attended.to(BF16), sums.float()
    rotary = rotary_table(capacity, 256, torch.device('cuda'))
    raw = flat_fragments(upstream.unflatten(1, (8, 256)).transpose(0, 1)).view(torch.uint8).flatten()
    phases.exchange['upstream'][0] = torch.where(phases.initial['upstream'][0] == 0, 0, raw)
    phases.length.fill_(length)
    phases.run(
        Phase.ATTENTION, queries=queries, keys=keys, values=values, attended=kept_attended, log_sums=log_sums,
        rotary=rotary, capacity=capacity, state_token=first,
    )  # fmt: skip
    found = from_fragments(phases.taken('turned'), BF16, 2560, 'accumulator')[:rows]
    assert not found[:first].any()
    if rows == first:
        return
    expected = torch.empty(rows - first, 2560, dtype=torch.float64, device='cuda')
    results = attended[first:], sums[first:]
    given = [x.double() for x in (queries[1, first:rows], keys[1], values[1])]
    PLAIN.attention(*given, results, phases.length, rotary, upstream[first:].double(), expected, None, first)
    for part in (slice(0, 2048), slice(2048, 2304), slice(2304, None)):  # of q, k and v
        assert relative_error(found[first:, part], expected[:, part]) < 3 * ROUNDED


@rows_of_interest
def test_begins_with_the_gradient(library, rows):
    phases = Phases(library, rows)
    phases.run(Phase.ACTIONS_IN)
    found = from_fragments(phases.taken('gated_down'), BF16, 1024, 'linear')[:rows]
    assert relative_error(found, (phases.gradient * phases.gate[2, 3])[:rows]) < ROUNDED


@pytest.mark.parametrize('first', [0, 1])
def test_two_layers_with_all_phases(library, first):
    """The gradient at the first norm of all, and the same bits again. first: as above."""
    rows, length, capacity = 50, 562, 640
    phases, given = Phases(library, rows), {}
    shapes = {'qkv': (2560, 1024), 'o': (1024, 2048), 'gate_up': (8192, 1024), 'down': (1024, 4096)}
    weights = {
        part: [normal(*shape, dtype=BF16, scale=shape[0] ** -0.5) for _ in range(2)]
        for part, shape in shapes.items()
    }
    for part, each in weights.items():
        given[f'{"output" if part == "o" else part}_weights'] = torch.stack(
            [pack_back(part, w) for w in each]
        )
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
    given |= {
        'queries': queries,
        'keys': keys,
        'values': values,
        'attended': attended.to(BF16),
        'log_sums': sums.float(),
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
        PLAIN.gelu_gate(phases.gate_up[i].double(), (out @ weights['down'][i].double())[None], hidden)
        arrived = hidden @ weights['gate_up'][i].double()
        gradient, out = phases.through_norm(2 * i + 1, arrived, 64)
        phases.gradient.copy_(gradient)
        own = slice(first, rows)
        turned = torch.zeros(64, 2560, dtype=torch.float64, device='cuda')
        PLAIN.attention(
            queries[i, own].double(), keys[i].double(), values[i].double(), (attended[i, own], sums[i, own]),
            phases.length, rotary, (out @ weights['o'][i].double())[own], turned[own], None, first,
        )  # fmt: skip
        arrived = turned @ weights['qkv'][i].double()
        if i:
            gradient, out = phases.through_norm(2 * i, arrived, 64)
            phases.gradient.copy_(gradient)
    assert relative_error(found[0][0], phases.gradient[:rows]) < 2e-2
    assert relative_error(found[0][1][first:], arrived[first:rows]) < 2e-2
    assert not found[0][0][:first].any()
