"""The action expert packed for its kernels: weights of four products a layer, and tables of the flow steps.

Folded away before anything runs, in fp32:
- adaRMS (pi0.5) and RMSNorm (pi0) become one form, `x / rms(x) * (1 + scale) + shift` with a gated
  residual; pi0 has shift 0 and gate 1. `x * (1 + scale)` is what kernels exchange, 1 / rms multiplies the
  product, and shift times the weight is a bias: all exact up to rounding.
- pi0's first embedding layer and action projection are one matrix [32, 1024], its time half one bias a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashrt_ros.engine.expert.layout import (
    Order,
    interleave_tiles,
    pack_slices,
    rotary_columns,
)
from flashrt_ros.engine.weights.formats import BF16, product_dtype, quantise_rows
from flashrt_ros.errors import BackendError
from flashrt_ros.models.spec import GEMMA_300M, PolicySpec
from flashrt_ros.models.tensors import EXPERT

PRODUCTS = ('qkv', 'output', 'gate_up', 'down')
"""The products of a layer in order; the second index of activation scales."""

QKV_COLUMNS, RESIDUAL_COLUMNS, GATE_UP_COLUMNS = 32, 32, 64


@dataclass(frozen=True)
class Product:
    """One product in all L layers. weights: uint8 [L, bytes]; scale: fp32 [L, N], both in block order."""

    weights: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Modulation:
    """Norms by flow step, fp32; S rows (one for each step and one for flow time 0, or 1 where they are
    constant), N = 2 L + 1 norms in order of use.

    scale: 1 + scale [S, N, 1024]. gate [S, N, 1024]: of the residual behind the norm. final_shift [S, 1024].
    qkv_bias [S, L, 2560], gate_up_bias [S, L, 8192]: shift times the weights, in block order.
    """

    scale: Tensor
    gate: Tensor
    final_shift: Tensor
    qkv_bias: Tensor
    gate_up_bias: Tensor


@dataclass(frozen=True)
class Heads:
    """Fp32 ends of a flow step: in_weight [32, 1024], in_bias [S, 1024], out_weight [32, 1024], out_bias
    [32].

    pi0 only: mixer (second embedding layer, bf16 in any precision), mixer_bias [1024]. None for pi0.5.
    """

    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    mixer: Product | None
    mixer_bias: Tensor | None


@dataclass(frozen=True)
class ExpertWeights:
    """Everything constant about one action expert in one precision. products: by the names in PRODUCTS."""

    precision: str
    steps: int
    products: Mapping[str, Product]
    modulation: Modulation
    heads: Heads


def pack_expert(
    spec: PolicySpec, tensors: Mapping[str, Tensor], flow_table: Tensor, precision: str
) -> ExpertWeights:
    """Pack canonical tensors (`models.tensors`) and `flow.flow_table`, on the device they are on.

    precision: 'bf16', 'fp8' or 'int8' (`formats.product_dtype` says what each product has), with
    one scale for each output channel.
    Raises BackendError for an expert whose sizes the kernels do not cover.
    """
    if replace(spec.expert, layers=GEMMA_300M.layers) != GEMMA_300M or spec.action_dim != 32:
        raise BackendError(
            f'the kernels cover {GEMMA_300M} with 32 action values, the checkpoint has {spec.expert} with '
            f'{spec.action_dim}',
            'action expert',
            'use a checkpoint of the published size',
        )
    layers = [_layer_matrices(tensors, i) for i in range(spec.expert.layers)]
    forms: dict[str, tuple[int, Order]] = {
        'qkv': (QKV_COLUMNS, 'linear'),
        'output': (RESIDUAL_COLUMNS, 'accumulator'),
        'gate_up': (GATE_UP_COLUMNS, 'linear'),
        'down': (RESIDUAL_COLUMNS, 'accumulator'),
    }
    products = {
        name: _pack([layer[name] for layer in layers], *form, product_dtype(f'expert.{name}', precision))
        for name, form in forms.items()
    }
    norms = _ada_norms(flow_table) if spec.has_ada_rms else _plain_norms(tensors, spec.expert.layers)
    heads = _ada_heads(tensors) if spec.has_ada_rms else _mixing_heads(tensors, flow_table)
    return ExpertWeights(precision, spec.steps, products, _modulation(*norms, layers), heads)


def _layer_matrices(tensors: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    """The four matrices [N, K] of a layer with their rows in block order, still in the checkpoint's dtype."""

    def weight(name: str) -> Tensor:
        return tensors[f'{EXPERT}layers.{layer}.{name}.weight']

    q, k, v = (weight(f'self_attn.{letter}_proj') for letter in 'qkv')
    head_dim = len(k)
    order = rotary_columns(len(q) // head_dim + 2, head_dim).to(q.device)
    return {
        'qkv': torch.cat([q, k, v])[order],
        'output': weight('self_attn.o_proj'),
        'gate_up': interleave_tiles(weight('mlp.gate_proj'), weight('mlp.up_proj')),
        'down': weight('mlp.down_proj'),
    }


def _pack(matrices: list[Tensor], columns: int, order: Order, dtype: torch.dtype) -> Product:
    packed = []
    for matrix in matrices:
        values, scale = quantise_rows(matrix, dtype)
        packed.append((pack_slices(values, columns, order).flatten(), scale))
    return Product(torch.stack([p[0] for p in packed]), torch.stack([p[1] for p in packed]))


def _ada_norms(flow_table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(scale, shift, gate), each [S, 2 L + 1, 1024], of pi0.5's flow table [S, 2 L + 1, 3, 1024]."""
    scale, shift, gate = flow_table.float().unbind(2)
    return scale, shift, gate


def _plain_norms(tensors: Mapping[str, Tensor], layers: int) -> tuple[Tensor, Tensor, Tensor]:
    names = [
        f'layers.{i}.{norm}'
        for i in range(layers)
        for norm in ('input_layernorm', 'post_attention_layernorm')
    ]
    scale = torch.stack([tensors[f'{EXPERT}{name}.weight'].float() for name in [*names, 'norm']])[None]
    return scale, torch.zeros_like(scale), torch.ones_like(scale)


def _modulation(scale: Tensor, shift: Tensor, gate: Tensor, layers: list[dict[str, Tensor]]) -> Modulation:
    qkv = [shift[:, 2 * i] @ layer['qkv'].float().T for i, layer in enumerate(layers)]
    gate_up = [shift[:, 2 * i + 1] @ layer['gate_up'].float().T for i, layer in enumerate(layers)]
    return Modulation(
        scale=(1 + scale).contiguous(),
        gate=gate.contiguous(),
        final_shift=shift[:, -1].contiguous(),
        qkv_bias=torch.stack(qkv, 1).contiguous(),
        gate_up_bias=torch.stack(gate_up, 1).contiguous(),
    )


def _ada_heads(tensors: Mapping[str, Tensor]) -> Heads:
    return Heads(
        in_weight=tensors['action_in_proj.weight'].float().T.contiguous(),
        in_bias=tensors['action_in_proj.bias'].float()[None],
        out_weight=tensors['action_out_proj.weight'].float().contiguous(),
        out_bias=tensors['action_out_proj.bias'].float(),
        mixer=None,
        mixer_bias=None,
    )


def _mixing_heads(tensors: Mapping[str, Tensor], flow_table: Tensor) -> Heads:
    """pi0: silu(W1 (W_in a + b_in) + time) enters the second layer; flow_table [S, 1024] is the time part."""
    first = tensors['action_time_mlp_in.weight'].float()[:, : GEMMA_300M.width]
    return Heads(
        in_weight=(first @ tensors['action_in_proj.weight'].float()).T.contiguous(),
        in_bias=(first @ tensors['action_in_proj.bias'].float() + flow_table.float()).contiguous(),
        out_weight=tensors['action_out_proj.weight'].float().contiguous(),
        out_bias=tensors['action_out_proj.bias'].float(),
        mixer=_pack([tensors['action_time_mlp_out.weight']], RESIDUAL_COLUMNS, 'linear', BF16),
        mixer_bias=tensors['action_time_mlp_out.bias'].float(),
    )
