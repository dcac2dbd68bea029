"""The way back through the action expert's layers as one kernel on Hopper (kernels/back_layers.cu): its
weights, what its blocks exchange, and its launches."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.arguments import Phase
from flashrt_ros.engine.expert.buffers import BLOCKS, HEAD_DIM, HEADS, MLP, PENDING, ROWS, WIDTH, zero_rows
from flashrt_ros.engine.expert.forward import FusedForward
from flashrt_ros.engine.expert.launches import LAYERS_THREADS, Launch
from flashrt_ros.engine.expert.layout import Order, pack_slices
from flashrt_ros.engine.operators.backward import AttentionScratch, BackwardOperators

COLUMNS: dict[str, tuple[int, Order]] = {
    'qkv': (64, 'linear'),
    'o': (16, 'linear'),
    'gate_up': (64, 'accumulator'),
    'down': (32, 'linear'),
}
"""Of a product's slice of weights (kernels/back_arguments.cuh), and in which order its input comes."""

SHARED = 200 << 10
"""Of back_layers.cu: bytes of the ring of weights, as much as a multiprocessor has left."""

PARTS, DOTS = 8, 2 * BLOCKS
"""Of kernels/back_arguments.cuh."""

MODE = {'cooperative': False, 'dependent': True}

BACK = Phase.DOWN | Phase.GATE_UP | Phase.OUTPUT | Phase.QKV

_POINTERS = (
    *('qkv_weights', 'output_weights', 'gate_up_weights', 'down_weights', 'gate', 'scale', 'x', 'squares'),
    *('gate_up', 'gradient', 'arriving', 'upstream', 'turned', 'gated_down', 'gated_output', 'hidden'),
    *('qkv_parts', 'gate_up_parts', 'qkv_dots', 'gate_up_dots', 'stamps'),
)
_NUMBERS = ('layers', 'rows', 'table_row', 'first', 'last', 'number', 'phases', 'enters', 'leaves', 'shared_bytes')


class BackArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int) for name in _NUMBERS),
    ]


def gate_order() -> Tensor:
    """Columns of gate and up's gradient in the order of its fragments: 16 gates, their 16 ups, and so on."""
    return torch.arange(2 * MLP).view(2, -1, 16).transpose(0, 1).flatten()


def pack_back(part: str, weight: Tensor) -> Tensor:
    """A product's weight bf16 [out, in] for gradient [rows, out] @ weight, uint8 [bytes]."""
    transposed = weight.t()
    if part == 'gate_up':
        transposed = transposed[:, gate_order().to(weight.device)]
    return pack_slices(transposed.contiguous(), *COLUMNS[part]).flatten()


def back_buffers(rows: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """(arena, its parts by their names in kernels/back_arguments.cuh, [2, bytes] each), as a loop begins."""
    parts = BLOCKS * PARTS * 64 * 16
    sizes = {
        'gated_down': ROWS * WIDTH * 2,
        'gated_output': ROWS * WIDTH * 2,
        'hidden': ROWS * 2 * MLP * 2,
        'qkv_parts': parts,
        'gate_up_parts': parts,
        'qkv_dots': DOTS * ROWS * 4,
        'gate_up_dots': DOTS * ROWS * 4,
    }
    arena = torch.full((2 * sum(sizes.values()),), PENDING, dtype=torch.uint8, device=device)
    pieces = arena.split([2 * size for size in sizes.values()])
    exchange = {name: piece.view(2, -1) for name, piece in zip(sizes, pieces, strict=True)}
    for name in ('gated_down', 'gated_output', 'hidden'):
        words = exchange[name].view(torch.int32).view(2, -1, ROWS // 16, 8, 4, 2, 2)
        zero_rows(words, -(-rows // 16) * 16 if name == 'hidden' else rows)
    return arena, exchange


def launch_back(library: KernelLibrary, constants: Mapping[str, int] = {}, **values: Tensor | int | None) -> Launch:
    """The launch of back_layers.cu on given arguments; what is not named is null or zero."""
    arguments = BackArguments()
    for name, value in values.items():
        known: Any = value.data_ptr() if isinstance(value, Tensor) else value
        if name not in _POINTERS + _NUMBERS:
            raise TypeError(f'back_layers.cu has no argument {name!r}')
        setattr(arguments, name, known)
    arguments.shared_bytes = SHARED
    kernel = library.kernel('back_layers', 'back_layers', **constants)
    return Launch(kernel, BLOCKS, LAYERS_THREADS, (arguments,), SHARED, **MODE)


class ResidentBack:
    """From the gradient behind the last layer to what arrives at the first norm. weights: uint8 [L, bytes] of
    each product, by the names in COLUMNS."""

    def __init__(
        self,
        library: KernelLibrary,
        backward: BackwardOperators,
        forward: FusedForward,
        weights: Mapping[str, Tensor],
        cache: PrefixCache,
        gradient: Tensor,
        stamps: Tensor | None = None,
    ) -> None:
        device, spec, self._rows = forward.device, forward.spec, forward.rows
        self._library, self._backward, self._forward, self._cache = library, backward, forward, cache
        self._weights, self._layers, self._gradient = weights, spec.expert.layers, gradient
        self.stamps = stamps
        self._first = int(spec.has_state_token)
        self._arena, self._exchange = back_buffers(forward.rows, device)
        self._initial = self._arena.clone()

        def buffer(columns: int) -> Tensor:
            return torch.zeros(ROWS, columns, dtype=torch.bfloat16, device=device)

        self._arriving, self._upstream = buffer(WIDTH), buffer(HEADS * HEAD_DIM)
        self._turned = buffer((HEADS + 2) * HEAD_DIM)
        self._scratch = AttentionScratch(HEADS, HEAD_DIM, spec.horizon, cache.capacity, device)
        self._steps = [self._launches(step) for step in range(spec.steps)]

    def begin(self) -> None:
        """Launch what comes before the first step."""
        self._arena.copy_(self._initial)

    def run(self, step: int) -> Tensor:
        """Launch a step's way back; what arrives is bf16 [1, 64, width]."""
        launches = self._steps[step]
        launches[0]()
        for layer, launch in zip(reversed(range(self._layers)), launches[1:], strict=True):
            self._through_attention(layer)
            launch()
        return self._arriving[None]

    def _launches(self, step: int) -> list[Launch]:
        begins = [self._launch(step, self._layers - 1, self._layers - 1, phases=BACK | Phase.ACTIONS_IN, leaves=1)]
        between = [
            self._launch(step, layer, layer - 1, phases=BACK, enters=1, leaves=1)
            for layer in range(self._layers - 1, 0, -1)
        ]
        return [*begins, *between, self._launch(step, 0, 0, phases=BACK, enters=1)]

    def _launch(self, step: int, first: int, last: int, **values: int) -> Launch:
        tables = self._forward.modulation
        return launch_back(
            self._library,
            qkv_weights=self._weights['qkv'],
            output_weights=self._weights['o'],
            gate_up_weights=self._weights['gate_up'],
            down_weights=self._weights['down'],
            gate=tables.gate,
            scale=tables.scale,
            x=self._forward.kept['x'],
            squares=self._forward.kept['squares'],
            gate_up=self._forward.kept['gate_up'],
            gradient=self._gradient,
            arriving=self._arriving,
            upstream=self._upstream,
            turned=self._turned,
            **self._exchange,
            layers=self._layers,
            rows=self._rows,
            table_row=min(step, len(tables.scale) - 1),
            first=first,
            last=last,
            stamps=self.stamps,
            constants={} if self.stamps is None else {'TIMELINE': self._layers // 2},
            number=step * self._layers + self._layers - 1 - first,
            **values,
        )

    def _through_attention(self, layer: int) -> None:
        forward, cache, own = self._forward, self._cache, slice(self._first, self._rows)
        attended, log_sums = forward.attended(layer)
        self._backward.attention(
            forward.queries(layer)[own],
            cache.keys[layer],
            cache.values[layer],
            (attended[own], log_sums[own]),
            cache.length,
            forward.rotary,
            self._upstream[own],
            self._turned,
            self._scratch,
            constant=self._first,
            fragments=True,
        )
