"""The language tower over images and prompt: nothing but its keys and values is kept.

A layer is nine launches: norm, QKV, RoPE and cache write, attention, output, norm, gate and up, GELU gate,
down. With weights packed for it (`wide_layout.pack_wide_language`) gate, up and GELU are one launch, and down
leaves parts that the norm behind it adds up. The last layer ends after its keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache, rotary_table, round_up
from flashrt_ros.engine.operators import fused_gemm, wide_gemm
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.operators.gemm import MOST_PADDING, Product, library_rows
from flashrt_ros.engine.operators.wide_gemm import part_count
from flashrt_ros.engine.weights.formats import as_input
from flashrt_ros.models.spec import PolicySpec

PARTS = 'qkv', 'o', 'gate_up', 'down'

WIDE = {'gate_up': 'gated', 'down': 'split_down'}
"""Products of a layer -> names of their weights when they are packed for kernels of ours."""


class Prefill:
    """Runs any number of rows up to its capacity; how many of them are valid is read on the device."""

    def __init__(
        self,
        operators: Operators,
        spec: PolicySpec,
        packed: Mapping[str, Tensor],
        scales: Mapping[str, float],
        views: int,
        cache: PrefixCache,
    ) -> None:
        self.spec, self.operators, self.cache = spec.language, operators, cache
        device = operators.library.gpu.device

        def product(name: str, packed_as: str | None = None) -> Product:
            scale = scales.get(f'language.{name}', 1.0)
            return Product(packed, f'language.{packed_as or name}', device, scale)

        last = self.spec.layers - 1
        self._wide = {part for part, name in WIDE.items() if f'language.0.{name}.weight' in packed}
        names = {part: WIDE[part] if part in self._wide else part for part in PARTS}
        self.layers = [
            {part: product(f'{i}.{part}', f'{i}.{name}') for part, name in names.items()} for i in range(last)
        ]
        self.last = product(f'{last}.kv')
        self.embedding = packed['language.embedding'].to(device)
        self._rotary = rotary_table(cache.capacity, self.spec.head_dim, device)
        self._allocate(views * spec.vision.tokens + round_up(spec.max_tokens) + MOST_PADDING, device)

    def _allocate(self, rows: int, device: torch.device) -> None:
        spec = self.spec
        width, attended = spec.width, spec.heads * spec.head_dim
        first = self.layers[0] if self.layers else dict.fromkeys(PARTS, self.last)

        def buffer(columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(rows, columns, dtype=dtype, device=device)

        self._residual, self._normed = buffer(width, torch.float32), buffer(width, self.last.dtype)
        self._qkv = buffer(attended + 2 * spec.head_dim)
        self._kv = buffer(2 * spec.head_dim)
        self._queries, self._attended = buffer(attended), buffer(attended, first['o'].dtype)
        self._activated, self._delta = buffer(spec.mlp, first['down'].dtype), buffer(width)
        self._gate_up = buffer(0 if 'gate_up' in self._wide else 2 * spec.mlp)
        most = max(wide_gemm.MOST_PARTS * width, fused_gemm.MOST_PARTS * (attended + 2 * spec.head_dim))
        self._parts = buffer(most if 'down' in self._wide else 0).flatten()

    def run(self, projected: Tensor, projector: Product, tokens: Tensor) -> None:
        """projected: what the vision tower gave. tokens int32: the prompt, padded to as many rows as shall
        run."""
        ops, cache = self.operators, self.cache
        rows = projected.shape[0] + tokens.shape[0]
        residual, normed = self._residual[:rows], self._normed[:rows]
        first = self.layers[0]['qkv'] if self.layers else self.last
        embedded = as_input(normed, first.dtype)
        ops.prefix_embedding(projected, projector, tokens, self.embedding, residual, embedded, first)
        for i, layer in enumerate(self.layers):
            following = self.layers[i + 1]['qkv'] if i + 1 < len(self.layers) else self.last
            self._run_layer(layer, i, following, rows)
        count = rows if ops.has_own(self.last) else library_rows(self.last, rows)
        ops.multiply(self.last, as_input(self._normed[:count], self.last.dtype), self._kv[:count])
        ops.rope(self._kv[:rows], self.last, self._rotary, None, None, cache.keys[-1], cache.values[-1])

    def _run_layer(self, layer: dict[str, Product], index: int, following: Product, rows: int) -> None:
        ops, cache = self.operators, self.cache
        keys, values = cache.keys[index, :rows], cache.values[index, :rows]
        residual, normed = self._residual[:rows], self._normed[:rows]
        queries, attended = self._queries[:rows], self._attended[:rows]
        qkv = self._multiply(layer, 'qkv', rows)
        ops.rope(qkv, layer['qkv'], self._rotary, None, queries, keys, values)
        attended = as_input(attended, layer['o'].dtype)
        ops.attention(queries, keys, values, cache.length, attended, layer['o'])
        delta = self._multiply(layer, 'o', rows)
        behind = as_input(normed, layer['gate_up'].dtype)
        ops.norm(residual, behind, layer['gate_up'], delta=delta, preceding=layer['o'])
        self._activate(layer, rows)
        delta = self._project_down(layer, rows)
        behind = as_input(normed, following.dtype)
        ops.norm(residual, behind, following, delta=delta, preceding=layer['down'])

    def _activate(self, layer: dict[str, Product], rows: int) -> None:
        """The hidden layer of the MLP."""
        activated = self._activated[:rows]
        if 'gate_up' in self._wide:
            x = as_input(self._normed[:rows], layer['gate_up'].dtype)
            self.operators.gated_product(x, layer['gate_up'], activated, layer['down'])
        else:
            self._multiply(layer, 'gate_up', rows)
            self.operators.gelu_gate(self._gate_up[:rows], layer['gate_up'], activated, layer['down'])

    def _project_down(self, layer: dict[str, Product], rows: int) -> Tensor:
        """The raw output of down, bf16 [rows, width], or in parts of its K [parts, rows, width]."""
        if 'down' not in self._wide:
            return self._multiply(layer, 'down', rows)
        width = self.spec.width
        count = part_count(rows, width, self.operators.library.gpu.multiprocessors)
        parts = self._parts[: count * rows * width].view(count, rows, width)
        self.operators.split_product(self._activated[:rows], layer['down'], parts)
        return parts

    def _multiply(self, layer: Mapping[str, Product], part: str, rows: int) -> Tensor:
        """One product of a layer on its buffers: raw bf16 [rows, columns], or [parts, rows, columns].

        What rows beyond `rows` hold is finite and not used.
        """
        product, (x, out) = layer[part], self._operands()[part]
        if self.operators.has_own(product):
            return self.operators.multiply_in_parts(product, as_input(x[:rows], product.dtype), self._parts)
        count = library_rows(product, rows)
        self.operators.multiply(product, as_input(x[:count], product.dtype), out[:count])
        return out[:rows]

    def _operands(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            'qkv': (self._normed, self._qkv),
            'o': (self._attended, self._delta),
            'gate_up': (self._normed, self._gate_up),
            'down': (self._activated, self._delta),
        }
