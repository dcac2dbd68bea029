"""The action expert's ends in fp32: noisy actions to tokens, tokens to velocities, tables by flow time.

Formulas and names follow `models.pi.PiModel`; here they work on packed tensors named `flow.*`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from flashrt_ros.models.pi import time_embedding
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import EXPERT

LINEARS = ('action_in_proj', 'action_out_proj', 'state_proj', 'action_time_mlp_in', 'action_time_mlp_out')


NORMS = ('input_layernorm', 'post_attention_layernorm')
"""Of a layer, in order of use."""


def pack_flow(tensors: Mapping[str, Tensor], spec: PolicySpec) -> dict[str, Tensor]:
    """`flow.table`, `flow.NAME.{weight,bias}` of the linears that the family has, and pi0's
    norm weights `flow.norms` [2 * layers + 1, width]; all fp32.

    Of pi0's action_time_mlp_in only the half that multiplies actions is kept: the other half and the bias
    depend on flow time alone and are the table.
    """
    packed = {'flow.table': flow_table(tensors, spec)}
    for name in LINEARS:
        if f'{name}.weight' in tensors:
            packed[f'flow.{name}.weight'] = tensors[f'{name}.weight'].float().contiguous()
            packed[f'flow.{name}.bias'] = tensors[f'{name}.bias'].float().contiguous()
    if spec.has_state_token:
        half = packed['flow.action_time_mlp_in.weight'][:, : spec.expert.width]
        packed['flow.action_time_mlp_in.weight'] = half.contiguous()
    if not spec.has_ada_rms:
        names = [*(f'layers.{i}.{norm}' for i in range(spec.expert.layers) for norm in NORMS), 'norm']
        packed['flow.norms'] = torch.stack([tensors[f'{EXPERT}{name}.weight'].float() for name in names])
    return packed


def flow_table(tensors: Mapping[str, Tensor], spec: PolicySpec) -> Tensor:
    """One row for each step, and one for flow time 0, which frozen actions have.

    pi0.5: fp32 [steps + 1, 2 * layers + 1, 3, width]; pi0: fp32 [steps + 1, width].
    """
    device = tensors['action_in_proj.weight'].device

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f'{name}.weight'].float(), tensors[f'{name}.bias'].float())

    times = torch.tensor([1 - step / spec.steps for step in range(spec.steps + 1)], device=device)
    width = spec.expert.width
    embedded = time_embedding(times, width)
    if not spec.has_ada_rms:
        time_half = tensors['action_time_mlp_in.weight'].float()[:, width:]
        return F.linear(embedded, time_half, tensors['action_time_mlp_in.bias'].float())
    condition = F.silu(linear(F.silu(linear(embedded, 'time_mlp_in')), 'time_mlp_out'))
    norms = [f'{EXPERT}layers.{i}.{norm}.dense' for i in range(spec.expert.layers) for norm in NORMS]
    rows = [linear(condition, name) for name in [*norms, f'{EXPERT}norm.dense']]
    return torch.stack(rows, 1).unflatten(-1, (3, width)).contiguous()


class FlowHeads:
    """Both ends of the expert, as torch operations that a graph can capture."""

    def __init__(self, packed: Mapping[str, Tensor], spec: PolicySpec, device: torch.device) -> None:
        self.spec = spec
        self._weights = {
            name: tensor.to(device) for name, tensor in packed.items() if name.startswith('flow.')
        }
        self.table = self._weights['flow.table']
        self.norms = self._weights.get('flow.norms', self.table)
        self.out_weight = self._weights['flow.action_out_proj.weight']
        self.out_bias = self._weights['flow.action_out_proj.bias']
        self.into_actions = self._weights['flow.action_in_proj.weight'].t().contiguous()

    def embed(self, actions: Tensor, state: Tensor, step: int) -> Tensor:
        """Actions fp32 [H, A] at a step (and pi0's state fp32 [A]) -> tokens fp32 [H or 1 + H, width]."""
        tokens = self._linear(actions, 'action_in_proj')
        if not self.spec.has_state_token:
            return tokens
        mixed = F.linear(tokens, self._weights['flow.action_time_mlp_in.weight']) + self.table[step]
        tokens = self._linear(F.silu(mixed), 'action_time_mlp_out')
        return torch.cat([self.state_token(state)[None], tokens])

    def state_token(self, state: Tensor) -> Tensor:
        """pi0's state fp32 [A] as a token of the expert, fp32 [width]."""
        return self._linear(state, 'state_proj')

    def velocity(self, tokens: Tensor) -> Tensor:
        """Normed tokens [H, width] -> velocities fp32 [H, A]."""
        return self._linear(tokens.float(), 'action_out_proj')

    def embed_gradient(self, upstream: Tensor, actions: Tensor, step: int) -> Tensor:
        """The gradient of pi0's actions at a step, fp32 [H, A], from that of their tokens."""
        mixing = self._weights['flow.action_time_mlp_in.weight']
        mixed = F.linear(self._linear(actions, 'action_in_proj'), mixing) + self.table[step]
        inner = upstream @ self._weights['flow.action_time_mlp_out.weight']
        return torch.ops.aten.silu_backward(inner, mixed) @ mixing @ self.into_actions.t()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f'flow.{name}.weight'], self._weights[f'flow.{name}.bias'])
