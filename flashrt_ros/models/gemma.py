"""The two Gemma towers of a pi policy: the language model that reads the prefix, and the action expert.

Both share 8 query heads of 256 on one K/V head, so that the expert's layer i can attend to the keys and
values that the language model's layer i left behind. Nothing is ever masked here: padding and absent views
are dropped before, and within prefix and actions everything sees everything.

Notation: B batch, T tokens, S tokens attended to, W width, D head size. A `Cache` holds one layer's keys
(after rotation) and values, [B, kv_heads, S, D] each; `Rotary` is (cos, sin), fp32 [T, D / 2].
Source: openpi `models/gemma.py` and `models_pytorch/transformers_replace/models/gemma/modeling_gemma.py` at
15a9616.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashrt_ros.models.linear import Linear
from flashrt_ros.models.spec import GemmaSpec

Cache = tuple[Tensor, Tensor]
Rotary = tuple[Tensor, Tensor]

EPSILON = 1e-6
ROPE_THETA = 1e4


class LanguageTower(nn.Module):
    """Gemma 2B as the prefix needs it: keys and values of every layer, never an output.

    Therefore the last layer has only its K and V, and there is no final norm.
    """

    def __init__(self, spec: GemmaSpec, vocab: int) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(vocab, spec.width)
        layers: list[nn.Module] = [Layer(spec, ada_rms=False) for _ in range(spec.layers - 1)]
        self.layers = nn.ModuleList([*layers, KeysValuesLayer(spec)])

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids int64 [B, T] -> embeddings [B, T, W], scaled by sqrt(W)."""
        return self.embed_tokens(tokens) * math.sqrt(self.spec.width)

    def forward(self, prefix: Tensor) -> list[Cache]:
        """Embedded prefix [B, T, W] at positions 0 to T - 1 -> cache of every layer."""
        rotary = rotary_table(torch.arange(prefix.shape[1], device=prefix.device), self.spec.head_dim)
        caches = []
        for layer in self.layers[:-1]:
            prefix, cache = layer(prefix, rotary)
            caches.append(cache)
        return [*caches, self.layers[-1](prefix, rotary)]


class ExpertTower(nn.Module):
    """Gemma 300M: attends to a prefix and to its own tokens; in pi0.5 its norms follow the flow time."""

    def __init__(self, spec: GemmaSpec, ada_rms: bool) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(Layer(spec, ada_rms) for _ in range(spec.layers))
        self.norm = make_norm(spec.width, ada_rms)

    def modulation(self, condition: Tensor) -> Tensor:
        """Condition fp32 [..., W] -> scale, shift and gate of every norm, fp32 [..., 2 * layers + 1, 3, W].

        Norms in order of use, which is that of their definition: input and post-attention norm of each
        layer, then the final norm.
        """
        rows = [norm.dense(condition) for norm in self.modules() if isinstance(norm, AdaRMSNorm)]
        return torch.stack(rows, -2).unflatten(-1, (3, self.spec.width))

    def forward(
        self, x: Tensor, rotary: Rotary, past: list[Cache], modulation: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """Tokens [B, T, W] -> (normed output [B, T, W], past extended by these tokens' keys and values)."""
        caches = []
        for i, layer in enumerate(self.layers):
            own = None if modulation is None else modulation[2 * i : 2 * i + 2]
            x, cache = layer(x, rotary, past[i], own)
            caches.append(cache)
        return self.norm(x, None if modulation is None else modulation[-1])[0], caches


class Layer(nn.Module):
    """Attention and gated MLP, each behind its norm and added to the residual stream."""

    def __init__(self, spec: GemmaSpec, ada_rms: bool) -> None:
        super().__init__()
        self.input_layernorm = make_norm(spec.width, ada_rms)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = make_norm(spec.width, ada_rms)
        self.mlp = GatedMlp(spec)

    def forward(
        self, x: Tensor, rotary: Rotary, past: Cache | None = None, modulation: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """modulation: fp32 [2, 3, W] or [2, 3, T, W], for the input norm and the post-attention norm."""
        first, second = (None, None) if modulation is None else modulation
        y, gate = self.input_layernorm(x, first)
        y, cache = self.self_attn(y, rotary, past)
        x = add_residual(x, y, gate)
        y, gate = self.post_attention_layernorm(x, second)
        return add_residual(x, self.mlp(y), gate), cache


class KeysValuesLayer(nn.Module):
    """What the last layer of the language tower is used for: its keys and values."""

    def __init__(self, spec: GemmaSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.width)
        self.self_attn = KeysValues(spec)

    def forward(self, x: Tensor, rotary: Rotary) -> Cache:
        return self.self_attn.keys_values(self.input_layernorm(x)[0], rotary)


class KeysValues(nn.Module):
    """Projection to keys and values."""

    def __init__(self, spec: GemmaSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        self.k_proj = Linear(spec.width, spec.kv_heads * spec.head_dim, bias=False)
        self.v_proj = Linear(spec.width, spec.kv_heads * spec.head_dim, bias=False)

    def keys_values(self, x: Tensor, rotary: Rotary) -> Cache:
        return rotate(self.split(self.k_proj(x)), rotary), self.split(self.v_proj(x))

    def split(self, x: Tensor) -> Tensor:
        """[B, T, heads * D] -> [B, heads, T, D]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Attention(KeysValues):
    """Grouped-query attention over an optional past and the tokens themselves."""

    def __init__(self, spec: GemmaSpec) -> None:
        super().__init__(spec)
        self.q_proj = Linear(spec.width, spec.heads * spec.head_dim, bias=False)
        self.o_proj = Linear(spec.heads * spec.head_dim, spec.width, bias=False)

    def forward(self, x: Tensor, rotary: Rotary, past: Cache | None) -> tuple[Tensor, Cache]:
        queries = rotate(self.split(self.q_proj(x)), rotary)
        keys, values = self.keys_values(x, rotary)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        return self.o_proj(attend(queries, keys, values)), (keys, values)


class GatedMlp(nn.Module):
    def __init__(self, spec: GemmaSpec) -> None:
        super().__init__()
        self.gate_proj = Linear(spec.width, spec.mlp, bias=False)
        self.up_proj = Linear(spec.width, spec.mlp, bias=False)
        self.down_proj = Linear(spec.mlp, spec.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate='tanh') * self.up_proj(x))


class RMSNorm(nn.Module):
    """Gemma's RMSNorm: `x / rms(x) * (1 + w)` in fp32. It has no gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, None]:
        return (over_rms(x) * (1 + self.weight.float())).to(x.dtype), None


class AdaRMSNorm(nn.Module):
    """pi0.5's RMSNorm: scale, shift and the gate of the sublayer behind it come from the flow time.

    `dense` maps the condition to the modulation; see `ExpertTower.modulation`, which tabulates it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, 3 * width)

    def forward(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """modulation: fp32 [3, W] or [3, T, W]. Returns (y [B, T, W], gate), both in the dtype of x."""
        scale, shift, gate = modulation
        return (over_rms(x) * (1 + scale) + shift).to(x.dtype), gate.to(x.dtype)


def make_norm(width: int, ada_rms: bool) -> nn.Module:
    return AdaRMSNorm(width) if ada_rms else RMSNorm(width)


def over_rms(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


def add_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    return x + y if gate is None else x + y * gate


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention without a mask, scale D ** -0.5.

    queries [B, heads, T, D]; keys, values [B, kv_heads, S, D]. Returns [B, T, heads * D].
    The query heads of one K/V head become rows of one matrix, so that keys and values are read once.
    """
    kv_heads, tokens = keys.shape[1], queries.shape[2]
    rows = queries.unflatten(1, (kv_heads, -1)).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(rows, keys, values)
    return mixed.unflatten(2, (-1, tokens)).flatten(1, 2).transpose(1, 2).flatten(2)


def rotary_table(positions: Tensor, head_dim: int) -> Rotary:
    """Positions int64 [T] -> (cos, sin) fp32 [T, head_dim / 2], theta 1e4."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[:, None].float() * ROPE_THETA**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Half-split rotary embedding of [B, heads, T, D], in fp32, rounded back to the dtype of x."""
    cos, sin = rotary
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
