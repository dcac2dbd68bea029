"""What `engine.operators.backward` computes, in plain torch: the contract of every kernel in a few lines."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

EPSILON = 1e-6


class PlainBackwardOperators:
    def parts(self, weight, rows):
        return 2 if weight.shape[0] > 300 else 1  # two for some, as the kernel has

    def product(self, gradient, weight, out):
        depth = len(weight) // len(out)
        for i, part in enumerate(out):
            some = slice(i * depth, (i + 1) * depth)
            part.copy_(gradient[:, some] @ weight[some])

    def gated_product(self, gradient, weight, x, hidden, out):
        self.product(gradient, weight, hidden)
        self.gelu_gate(x, hidden, out)

    def norm(self, x, upstream, gradient, out, *, scale=None, gate=None):
        g = upstream.to(x.dtype).sum(0) * (1 if scale is None else 1 + scale)
        factor = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
        y = x * factor
        gradient.add_((g - y * (g * y).mean(-1, keepdim=True)) * factor)
        if out is not None:
            out.copy_(gradient if gate is None else gradient * gate)

    def gelu_gate(self, x, upstream, out):
        gate, up = x.to(_wide(x)).chunk(2, -1)
        u = upstream.to(gate.dtype).sum(0)
        gradient = torch.ops.aten.gelu_backward(u * up, gate, approximate='tanh')
        out.copy_(torch.cat([gradient, u * F.gelu(gate, approximate='tanh')], -1))

    def attention(
        self, queries, keys, values, results, length, table, upstream, out, scratch, constant=0
    ):  # fmt: skip
        rows, dim, fixed = len(queries), keys.shape[1], int(length) + constant
        wide = _wide(queries)
        q, u = (x.to(wide).unflatten(1, (-1, dim)).transpose(0, 1) for x in (queries, upstream))
        k, v = (x[: fixed + rows].to(wide) for x in (keys, values))
        attended, log_sums = (x.to(wide) for x in results)
        p = torch.exp2(q @ k.T / math.sqrt(dim) / math.log(2) - log_sums.T[..., None])
        mean = (u * attended.unflatten(1, (-1, dim)).transpose(0, 1)).sum(-1, keepdim=True)
        ds = p * (u @ v.T - mean) / math.sqrt(dim)
        dk, dv = ((x.transpose(1, 2) @ y).sum(0)[fixed:] for x, y in ((ds, q), (p, u)))
        cos, sin = table[fixed : fixed + rows, None].to(wide).unbind(-1)
        a, b = torch.cat([(ds @ k).transpose(0, 1), dk[:, None]], 1).chunk(2, -1)
        turned = torch.cat([a * cos + b * sin, b * cos - a * sin], -1)
        out.copy_(torch.cat([turned, dv[:, None]], 1).flatten(1))

    def ends(self, actions, guide, gradient):
        return PlainEnds(actions, guide, gradient)


class PlainEnds:
    """What `engine.operators.exact_ends` computes."""

    def __init__(self, actions, guide, gradient):
        self.actions, self.guide, self.gradient = actions, guide, gradient
        self.velocity, self._norm = torch.zeros_like(actions), PlainBackwardOperators().norm

    def begin(self, step, x, modulation, gate, weight, bias, out):
        scale, shift = (None, None) if modulation is None else modulation[:2]
        y = F.rms_norm(x, x.shape[1:], eps=EPSILON) * (1 if scale is None else 1 + scale)
        self.velocity.copy_(F.linear(y if shift is None else y + shift, weight, bias))
        upstream = self._pull(step) @ weight
        self._norm(x, upstream[None], self.gradient.zero_(), out, scale=scale, gate=gate)

    def end(self, step, x, upstream, scale, weight):
        self._norm(x, upstream, self.gradient, None, scale=scale)
        correction = self._pull(step) - self._time(step) * (self.gradient @ weight.T)
        guided = self.velocity - self.guide.gammas[step] * correction
        self.actions.sub_(guided, alpha=1 / len(self.guide.gammas))

    def _pull(self, step):
        clean = self.actions - self._time(step) * self.velocity
        return self.guide.weights * (self.guide.target - clean)

    def _time(self, step):
        return 1 - step / len(self.guide.gammas)


def _wide(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32
