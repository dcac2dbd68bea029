"""The denoise loop in its plain form: the action expert layer by layer with the same kernels as the prefill.

It runs on every GPU, covers every size, and gives the activation scales of the fp8 mode. Where
`expert.denoise` covers GPU and sizes, that one is used instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache, rotary_table, round_up
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators.forward import Modulation, Operators
from flashrt_ros.engine.operators.gemm import ROWS_MULTIPLE, Product
from flashrt_ros.engine.towers.flow import FlowHeads
from flashrt_ros.models.spec import PolicySpec

Modulations = list[Modulation | None]
"""Of every norm of a flow step in order of use; None where there is nothing to modulate."""


class PlainDenoise:
    """All flow steps. The suffix's keys and values are written behind the prefix's, again at every step.

    actions fp32 [H, A]: noise before `run`, actions after. state fp32 [A], read by pi0. guide: what `run` is
    guided by. keeps: every layer's activations in buffers of their own, for `exact`.
    """

    def __init__(
        self,
        operators: Operators,
        spec: PolicySpec,
        packed: Mapping[str, Tensor],
        scales: Mapping[str, float],
        cache: PrefixCache,
        keeps: bool = False,
    ) -> None:
        self.spec, self.operators, self.cache = spec, operators, cache
        self.device = operators.library.gpu.device
        self.heads = FlowHeads(packed, spec, self.device)

        def product(name: str) -> Product:
            return Product(packed, f'expert.{name}', self.device, scales.get(f'expert.{name}', 1.0))

        parts = ('qkv', 'o', 'gate_up', 'down')
        self.layers = [{part: product(f'{i}.{part}') for part in parts} for i in range(spec.expert.layers)]
        self.rows = spec.horizon + spec.has_state_token
        self.padded_rows = round_up(self.rows, ROWS_MULTIPLE)
        self.actions = torch.zeros(spec.horizon, spec.action_dim, device=self.device)
        self.state = torch.zeros(spec.action_dim, device=self.device)
        self.guide = GuideInputs(spec, self.device)
        self.rotary = rotary_table(cache.capacity, spec.expert.head_dim, self.device)
        self._keeps = keeps
        self._allocate(spec.expert.layers if keeps else 1, 2 * spec.expert.layers + 1 if keeps else 1)

    def run(self) -> None:
        """Launch all flow steps on the current stream."""
        self.operators.flow_step(self.actions, None, self.guide, 0)
        for step in range(self.spec.steps):
            self.operators.flow_step(self.actions, self.velocity(step), self.guide, step)

    def velocity(self, step: int) -> Tensor:
        """The flow field at the actions, fp32 [H, A]."""
        self.run_layers(step)
        return self.heads.velocity(self._final[self.rows - self.spec.horizon : self.rows])

    def run_layers(self, step: int) -> None:
        """A flow step up to its final norm."""
        observer = self.layers[0]['qkv'].observer
        if observer is not None:
            observer.step = step
        self.residual(0)[: self.rows].copy_(self.heads.embed(self.actions, self.state, step))
        self._run_tower(step)
        if observer is not None:
            observer.step = None

    def residual(self, norm: int) -> Tensor:
        """The residual stream that a norm, by order of use, has normalised, fp32 [padded rows, width]."""
        return self._residuals[norm % len(self._residuals)]

    def queries(self, layer: int) -> Tensor:
        """After rotation, bf16 [padded rows, heads * dim]; `gate_up`: likewise."""
        return self._queries[layer % len(self._queries)]

    def gate_up(self, layer: int) -> Tensor:
        return self._gate_up[layer % len(self._gate_up)]

    def attended(self, layer: int) -> tuple[Tensor, Tensor]:
        """Attention's result [padded rows, heads * dim], and log2 of its sums of exponentials, fp32 [padded
        rows, heads], which only a loop that keeps has."""
        return self._attended[layer % len(self._attended)], self._log_sums[layer % len(self._log_sums)]

    def _allocate(self, layers: int, norms: int) -> None:
        """layers, norms: how many have buffers of their own."""
        spec = self.spec.expert
        width, attended, narrow = spec.width, spec.heads * spec.head_dim, self.layers[0]['qkv'].dtype

        def buffer(columns: int, dtype: torch.dtype = torch.bfloat16, count: int = 1) -> Tensor:
            return torch.zeros(count, self.padded_rows, columns, dtype=dtype, device=self.device)

        self._residuals = buffer(width, torch.float32, norms)
        self._queries, self._attended = buffer(attended, count=layers), buffer(attended, narrow, layers)
        self._log_sums = buffer(spec.heads, torch.float32, layers)
        self._gate_up = buffer(2 * spec.mlp, count=layers)
        self._normed, self._activated = buffer(width, narrow)[0], buffer(spec.mlp, narrow)[0]
        self._final, self._delta = buffer(width)[0], buffer(width)[0]
        self._qkv = buffer(attended + 2 * spec.head_dim)[0]

    def _run_tower(self, step: int) -> None:
        ops, modulations = self.operators, self.modulations(step)
        ops.norm(self.residual(0), self._normed, self.layers[0]['qkv'], modulation=modulations[0])
        self._observe_unnormed('0.unnormed_qkv', modulations[0])
        for i, layer in enumerate(self.layers):
            self._attend(layer, i)
            self._add_and_norm(2 * i + 1, layer['o'], layer['gate_up'], modulations)
            self._observe_unnormed(f'{i}.unnormed_gate_up', modulations[2 * i + 1])
            layer['gate_up'](self._normed, self.gate_up(i))
            ops.gelu_gate(self.gate_up(i), layer['gate_up'], self._activated, layer['down'])
            layer['down'](self._activated, self._delta)
            following = self.layers[i + 1]['qkv'] if i + 1 < len(self.layers) else None
            self._add_and_norm(2 * i + 2, layer['down'], following, modulations)
            if following is not None:
                self._observe_unnormed(f'{i + 1}.unnormed_qkv', modulations[2 * i + 2])

    def _add_and_norm(
        self, norm: int, preceding: Product, following: Product | None, modulations: Modulations
    ) -> None:
        """Add what `preceding` gave to the residual stream, gated, and normalise that for `following`."""
        before = modulations[norm - 1]
        self.operators.norm(
            self.residual(norm - 1),
            self._final if following is None else self._normed,
            following,
            delta=self._delta,
            preceding=preceding,
            gate=None if before is None else before.gate,
            modulation=modulations[norm],
            updated=self.residual(norm),
        )

    def _observe_unnormed(self, name: str, modulation: Modulation | None) -> None:
        """While calibrating, note the range of x * (1 + scale): the fused loop rounds that, not the norm."""
        observer = self.layers[0]['qkv'].observer
        if observer is not None:
            scale = modulation.scale if modulation is not None else None
            scale = self._norm_weights(name) if scale is None else scale
            observer.note(f'expert.{name}', self.residual(0)[: self.rows] * (1 + scale))

    def _norm_weights(self, name: str) -> Tensor:
        """pi0's constant norm weights, which the packed products have folded in."""
        layer, _, which = name.partition('.')
        return self.heads.norms[2 * int(layer) + (which == 'unnormed_gate_up')]

    def _attend(self, layer: dict[str, Product], index: int) -> None:
        ops, cache, rows = self.operators, self.cache, self.rows
        keys, values = cache.keys[index], cache.values[index]
        layer['qkv'](self._normed, self._qkv)
        queries, (attended, log_sums) = self.queries(index), self.attended(index)
        ops.rope(self._qkv[:rows], layer['qkv'], self.rotary, cache.length, queries, keys, values)
        ops.attention(
            queries[:rows],
            keys,
            values,
            cache.length,
            attended,
            layer['o'],
            appended=rows,
            first_sees=1 if self.spec.has_state_token else -1,
            log_sums=log_sums if self._keeps else None,
        )
        layer['o'](attended, self._delta)

    def begin(self) -> None:
        """Nothing has to be launched before the first step."""

    def modulations(self, step: int) -> Modulations:
        """Of every norm in order of use."""
        return expert_modulations(self.spec, self.heads, self.guide.frozen, step)


def expert_modulations(spec: PolicySpec, heads: FlowHeads, frozen: Tensor, step: int) -> Modulations:
    """Of every norm in order of use. pi0's layer norms are folded; its final norm is a constant scale."""
    if spec.has_ada_rms:
        clean = (spec.steps - step) * heads.table[0].numel()
        return [Modulation(s, h, g, frozen, clean) for s, h, g in heads.table[step]]
    return [*[None] * (2 * spec.expert.layers), Modulation(heads.norms[-1], None, None)]
