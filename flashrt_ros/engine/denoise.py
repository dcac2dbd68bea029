"""The denoise loop in its plain form: the action expert layer by layer with the same kernels as the prefill.

It runs on every GPU, covers every size, and gives the activation scales of the fp8 mode. Where
`fused_denoise` covers GPU and sizes, that one is used instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache, rotary_table, round_up
from flashrt_ros.engine.flow import FlowHeads
from flashrt_ros.engine.gemm import ROWS_MULTIPLE, Product
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators import Modulation, Operators
from flashrt_ros.models.spec import PolicySpec


class PlainDenoise:
    """All flow steps. The suffix's keys and values are written behind the prefix's, again at every step.

    actions fp32 [H, A]: noise before `run`, actions after. state fp32 [A], read by pi0. guide: read by `run`.
    """

    def __init__(
        self,
        operators: Operators,
        spec: PolicySpec,
        packed: Mapping[str, Tensor],
        scales: Mapping[str, float],
        cache: PrefixCache,
    ) -> None:
        self.spec, self.operators, self.cache = spec, operators, cache
        self.device = operators.library.gpu.device
        self.heads = FlowHeads(packed, spec, self.device)

        def product(name: str) -> Product:
            return Product(packed, f'expert.{name}', self.device, scales.get(f'expert.{name}', 1.0))

        parts = ('qkv', 'o', 'gate_up', 'down')
        self.layers = [{part: product(f'{i}.{part}') for part in parts} for i in range(spec.expert.layers)]
        self.rows = spec.horizon + spec.has_state_token
        self.actions = torch.zeros(spec.horizon, spec.action_dim, device=self.device)
        self.state = torch.zeros(spec.action_dim, device=self.device)
        self.guide = GuideInputs(spec, self.device)
        self._rotary = rotary_table(cache.capacity, spec.expert.head_dim, self.device)
        self._allocate()

    def run(self) -> None:
        """Launch all flow steps on the current stream."""
        observer = self.layers[0]['qkv'].observer
        self.operators.flow_step(self.actions, None, self.guide, 0)
        for step in range(self.spec.steps):
            if observer is not None:
                observer.step = step
            self._residual[: self.rows].copy_(self.heads.embed(self.actions, self.state, step))
            self._run_tower(step)
            normed = self._final[self.rows - self.spec.horizon : self.rows]
            self.operators.flow_step(self.actions, self.heads.velocity(normed), self.guide, step)
        if observer is not None:
            observer.step = None

    def _allocate(self) -> None:
        spec = self.spec.expert
        width, attended = spec.width, spec.heads * spec.head_dim
        narrow, rows = self.layers[0]['qkv'].dtype, round_up(self.rows, ROWS_MULTIPLE)

        def buffer(columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(rows, columns, dtype=dtype, device=self.device)

        self._residual, self._normed, self._final = (
            buffer(width, torch.float32),
            buffer(width, narrow),
            buffer(width),
        )
        self._qkv = buffer(attended + 2 * spec.head_dim)
        self._queries, self._attended = buffer(attended), buffer(attended, narrow)
        self._gate_up, self._activated = buffer(2 * spec.mlp), buffer(spec.mlp, narrow)
        self._delta = buffer(width)

    def _run_tower(self, step: int) -> None:
        ops, residual = self.operators, self._residual
        modulations = self._modulations(step)
        ops.norm(residual, self._normed, self.layers[0]['qkv'], modulation=modulations[0])
        self._observe_unnormed('0.unnormed_qkv', modulations[0])
        for i, layer in enumerate(self.layers):
            own, after_attention, following = modulations[2 * i : 2 * i + 3]
            self._attend(layer, i)
            gate = None if own is None else own.gate
            ops.norm(
                residual,
                self._normed,
                layer['gate_up'],
                delta=self._delta,
                preceding=layer['o'],
                gate=gate,
                modulation=after_attention,
            )
            self._observe_unnormed(f'{i}.unnormed_gate_up', after_attention)
            layer['gate_up'](self._normed, self._gate_up)
            ops.gelu_gate(self._gate_up, layer['gate_up'], self._activated, layer['down'])
            layer['down'](self._activated, self._delta)
            last = i + 1 == len(self.layers)
            ops.norm(
                residual,
                self._final if last else self._normed,
                None if last else self.layers[i + 1]['qkv'],
                delta=self._delta,
                preceding=layer['down'],
                gate=None if after_attention is None else after_attention.gate,
                modulation=following,
            )
            if not last:
                self._observe_unnormed(f'{i + 1}.unnormed_qkv', following)

    def _observe_unnormed(self, name: str, modulation: Modulation | None) -> None:
        """While calibrating, note the range of x * (1 + scale): the fused loop rounds that, not the norm."""
        observer = self.layers[0]['qkv'].observer
        if observer is not None:
            scale = modulation.scale if modulation is not None else None
            scale = self._norm_weights(name) if scale is None else scale
            observer.note(f'expert.{name}', self._residual[: self.rows] * (1 + scale))

    def _norm_weights(self, name: str) -> Tensor:
        """pi0's constant norm weights, which the packed products have folded in."""
        layer, _, which = name.partition('.')
        return self.heads.norms[2 * int(layer) + (which == 'unnormed_gate_up')]

    def _attend(self, layer: dict[str, Product], index: int) -> None:
        ops, cache, rows = self.operators, self.cache, self.rows
        keys, values = cache.keys[index], cache.values[index]
        layer['qkv'](self._normed, self._qkv)
        ops.rope(self._qkv[:rows], layer['qkv'], self._rotary, cache.length, self._queries, keys, values)
        ops.attention(
            self._queries[:rows],
            keys,
            values,
            cache.length,
            self._attended,
            layer['o'],
            appended=rows,
            first_sees=1 if self.spec.has_state_token else -1,
        )
        layer['o'](self._attended, self._delta)

    def _modulations(self, step: int) -> list[Modulation | None]:
        """Of every norm in order of use. pi0's layer norms are folded; its final norm is a constant scale."""
        norms = 2 * self.spec.expert.layers + 1
        if self.spec.has_ada_rms:
            table, frozen = self.heads.table, self.guide.frozen
            clean = (self.spec.steps - step) * table[0].numel()
            return [Modulation(s, h, g, frozen, clean) for s, h, g in table[step]]
        return [*[None] * (norms - 1), Modulation(self.heads.norms[-1], None, None)]
