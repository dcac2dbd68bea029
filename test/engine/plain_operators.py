"""What `engine.operators.forward` computes, in plain torch: the contract of every kernel in a few lines.

The towers run on it without a GPU, so that packing and the order of launches are tested everywhere.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from flashrt_ros.engine.weights.formats import E4M3, round_to
from flashrt_ros.engine.weights.wide_layout import gated_order, lane_order

LIBRARY = SimpleNamespace(
    gpu=SimpleNamespace(device=torch.device('cpu'), capability=(8, 0), multiprocessors=132)
)
"""Stands for a kernel library where the towers ask it for a device."""


def real(raw: Tensor, product) -> Tensor:
    """The raw output of a product in real units, fp32."""
    x = raw.float()
    if product is not None and product.channel_scale is not None:
        x = x * product.channel_scale
    return x if product is None or product.bias is None else x + product.bias


def leave(y: Tensor, out: Tensor, following) -> None:
    """Round what a kernel leaves for the product behind it."""
    scaled = y if following is None else y * following.inverse_scale
    out[: len(y)] = round_to(scaled, out.dtype)


def of_rows(vector, modulation, rows):
    """A vector of the flow step for each row: for frozen ones that of flow time 0."""
    if vector is None or modulation is None or modulation.frozen is None:
        return vector
    clean = vector.as_strided(vector.shape, vector.stride(), vector.storage_offset() + modulation.clean)
    return torch.where(torch.arange(rows)[:, None] < modulation.frozen, clean, vector)


class PlainOperators:
    library = LIBRARY

    def norm(
        self, residual, out, following, *, delta=None, preceding=None, gate=None, modulation=None,
        updated=None,
    ):  # fmt: skip
        x = residual
        if delta is not None:
            summed = delta.float().sum(0) if delta.dim() == 3 else delta[: len(residual)]
            added = real(summed, preceding)
            x = x + (added if gate is None else added * of_rows(gate, modulation, len(residual)))
            (residual if updated is None else updated).copy_(x)
        width = residual.shape[1:]
        y = F.rms_norm(x, width, eps=1e-6)
        if modulation is not None:
            scale, shift = (of_rows(v, modulation, len(residual)) for v in modulation[:2])
            y = y * (1 + scale) + (0 if shift is None else shift)
        leave(y, out, following)

    def flow_step(self, actions, velocity, guide, step, product=None):
        steps, frozen = len(guide.gammas), int(guide.frozen)
        if velocity is not None:
            time = 1 - step / steps
            pull = guide.weights * (guide.target - (actions - time * velocity))
            correction = pull if product is None else pull - time * product
            actions.sub_(velocity - guide.gammas[step] * correction, alpha=1 / steps)
        actions[:frozen] = guide.target[:frozen]

    def layer_norm(self, residual, out, following, sums, *, preceding=None, start=None):
        x = residual if start is None else start[torch.arange(len(residual)) % len(start)]
        residual.copy_(x + real(sums.float().sum(0), preceding))
        leave(F.layer_norm(residual, residual.shape[1:], eps=1e-6), out, following)

    def bias_gelu(self, x, preceding, out, following):
        leave(F.gelu(real(x, preceding), approximate='tanh'), out, following)

    def gelu_gate(self, x, preceding, out, following):
        gate, up = real(x, preceding).chunk(2, 1)
        leave(F.gelu(gate, approximate='tanh') * up, out, following)

    def has_own(self, product):
        return False

    def multiply(self, product, x, out):
        if product.dtype == E4M3:  # which the CPU does not multiply
            out.copy_(x.float() @ product.weight.float().T)
        else:
            product(x, out)

    def gated_product(self, x, product, out, following):
        width = out.shape[1]
        columns = torch.empty(len(x), 2 * width)
        columns[:, gated_order(width)] = real(x.float() @ product.weight.float().T, product)
        gate, up = columns.chunk(2, 1)
        leave(F.gelu(gate, approximate='tanh') * up, out, following)

    def split_product(self, x, product, out):
        parts, _, columns = out.shape
        ranges = zip(x.float().chunk(parts, 1), product.weight.float().chunk(parts, 1), strict=True)
        for part, (some, weight) in zip(out, ranges, strict=True):
            part[:, lane_order(columns)] = (some @ weight.T).to(part.dtype)

    def rope(self, qkv, preceding, table, offset, queries, keys, values):
        rows, dim = len(qkv), keys.shape[1]
        first = 0 if offset is None else int(offset)
        x = real(qkv, preceding).unflatten(1, (-1, dim))
        cos, sin = table[first : first + rows, None].unbind(-1)
        a, b = x.chunk(2, -1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        keys[first : first + rows] = rotated[:, -2].to(keys.dtype)
        values[first : first + rows] = x[:, -1].to(values.dtype)
        if queries is not None:
            queries[:rows] = rotated[:, :-2].flatten(1).to(queries.dtype)

    def attention(
        self, queries, keys, values, length, out, following, *, appended=0, first_sees=-1, log_sums=None
    ):  # fmt: skip
        rows, dim, total = len(queries), keys.shape[1], int(length) + appended
        mask = torch.ones(rows, total, dtype=torch.bool)
        if first_sees >= 0:
            mask[0, int(length) + first_sees :] = False
        q = queries.float().unflatten(1, (-1, dim)).transpose(0, 1)
        logits = (q @ keys[:total].float().T / math.sqrt(dim)).masked_fill(~mask, -math.inf)
        if log_sums is not None:
            log_sums[:rows] = logits.logsumexp(-1).T / math.log(2)
        weighted = torch.softmax(logits, -1) @ values[:total].float()
        leave(weighted.transpose(0, 1).flatten(1), out, following)

    def vision_attention(self, qkv, preceding, tokens, heads, out, following):
        q, k, v = (
            real(qkv, preceding).view(-1, tokens, 3, heads, out.shape[1] // heads).permute(2, 0, 3, 1, 4)
        )
        leave(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(out.shape), out, following)

    def patches(self, frames, patch, out):
        patches = F.unfold(255 * frames, patch, stride=patch).transpose(1, 2).flatten(0, 1)
        out.copy_(F.pad(patches, (0, out.shape[1] - patches.shape[1])))

    def prefix_embedding(self, projected, projector, tokens, table, residual, out, following):
        words = table[tokens.long()].float() * math.sqrt(residual.shape[1])
        residual.copy_(torch.cat([real(projected, projector), words]))
        leave(F.rms_norm(residual, residual.shape[1:], eps=1e-6), out, following)
