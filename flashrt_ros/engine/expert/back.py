"""The way back through the action expert's layers as one kernel on Hopper (kernels/back_layers.cu): its
weights, what its blocks exchange, and its launches."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.arguments import LAYER, Phase, Pointers, fill
from flashrt_ros.engine.expert.buffers import (
    ATTENTION_GROUP,
    BLOCKS,
    HEAD_DIM,
    HEADS,
    MLP,
    PENDING,
    ROWS,
    WIDTH,
    zero_rows,
)
from flashrt_ros.engine.expert.forward import FusedForward
from flashrt_ros.engine.expert.launches import LAYERS_THREADS, Launch
from flashrt_ros.engine.expert.layout import Order, pack_slices, rotary_columns
from flashrt_ros.engine.weights.formats import BF16, E4M3, quantise_rows
from flashrt_ros.models.tensors import EXPERT

COLUMNS: dict[str, tuple[int, Order]] = {
    'qkv': (64, 'accumulator'),
    'o': (16, 'linear'),
    'gate_up': (64, 'accumulator'),
    'down': (32, 'linear'),
}
"""Of a product's slice of weights (kernels/back_arguments.cuh), and in which order its input comes."""

SHARED = 200 << 10
"""Of back_layers.cu: bytes of dynamic shared memory, as much as a multiprocessor has left."""

PARTS, DOTS = 8, 2 * BLOCKS
"""Of kernels/back_arguments.cuh."""

_POINTERS = (
    *('qkv_weights', 'output_weights', 'gate_up_weights', 'down_weights', 'output_scale', 'down_scale'),
    *('gate', 'scale', 'rotary', 'length'),
    *('x', 'squares', 'queries', 'keys', 'values', 'gate_up', 'attended', 'log_sums', 'gradient', 'arriving'),
    *('gated_down', 'gated_output', 'hidden', 'upstream', 'turned', 'query_parts', 'key_parts'),
    *('qkv_parts', 'gate_up_parts', 'qkv_dots', 'gate_up_dots', 'stamps'),
)
_NUMBERS = (
    *('layers', 'rows', 'state_token', 'capacity', 'table_row', 'first', 'last', 'number', 'phases'),
    'shared_bytes',
)


class BackArguments(Pointers):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int) for name in _NUMBERS),
    )


def back_constants(form: str) -> dict[str, int]:
    """What the kernel is compiled with for weights in 'bf16' or 'fp8'."""
    return {} if form == 'bf16' else {'FP8': 1}


def gate_order() -> Tensor:
    """Columns of gate and up's gradient in the order of its fragments: 16 gates, their 16 ups, and so on."""
    return torch.arange(2 * MLP).view(2, -1, 16).transpose(0, 1).flatten()


def turned_order() -> Tensor:
    """Columns of q, k and v's gradient in the order of its fragments in 8 bits."""
    return rotary_columns(HEADS + 2, HEAD_DIM)


def pack_back(part: str, weight: Tensor, form: str = 'bf16') -> tuple[Tensor, Tensor]:
    """A product's weight [out, in] for gradient [rows, out] @ weight: uint8 [bytes], and fp32 [in], the scale
    of each column of the result (one in bf16). form: 'bf16', or 'fp8' for E4M3."""
    transposed, dtype = weight.t(), BF16 if form == 'bf16' else E4M3
    if part == 'gate_up':
        transposed = transposed[:, gate_order().to(weight.device)]
    if part == 'qkv' and form == 'fp8':
        transposed = transposed[:, turned_order().to(weight.device)]
    values, scale = quantise_rows(transposed, dtype)
    return pack_slices(values, *COLUMNS[part]).flatten(), scale


def pack_layers(tensors: Mapping[str, Tensor], layers: int, form: str = 'bf16') -> dict[str, Tensor]:
    """Canonical tensors (`models.tensors`) as `ResidentBack` wants its weights. What a norm multiplies by is
    not folded into them: it is in the tables of the forward pass."""
    products = {
        'qkv': [f'self_attn.{letter}_proj' for letter in 'qkv'],
        'o': ['self_attn.o_proj'],
        'gate_up': ['mlp.gate_proj', 'mlp.up_proj'],
        'down': ['mlp.down_proj'],
    }
    packed = {}
    for part, names in products.items():
        weights = (
            torch.cat([tensors[f'{EXPERT}layers.{layer}.{name}.weight'] for name in names])
            for layer in range(layers)
        )
        both = [pack_back(part, weight, form) for weight in weights]
        packed[part] = torch.stack([values for values, _ in both])
        if form == 'fp8':
            packed[f'{part}_scale'] = torch.stack([scale for _, scale in both])
    return packed


def norm_scales(scale: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """What arrives behind each norm is multiplied by, fp32 [S, 2 L + 1, width]: the norms' own `scale`, in 8
    bits times that of the weights behind the norm; for the first norm that alone, as its own comes later."""
    if 'qkv_scale' not in weights:
        return scale
    out = scale.clone()
    out[:, 0] = 1
    out[:, 0:-1:2] *= weights['qkv_scale']
    out[:, 1::2] *= weights['gate_up_scale']
    return out


def back_buffers(rows: int, device: torch.device, form: str = 'bf16') -> tuple[Tensor, dict[str, Tensor]]:
    """(arena, its parts by their names in kernels/back_arguments.cuh, [2, bytes] each), as a loop begins."""
    parts, size = BLOCKS * PARTS * 64 * 16, 2 if form == 'bf16' else 1
    sizes = {
        'gated_down': ROWS * WIDTH * size,
        'gated_output': ROWS * WIDTH * size,
        'hidden': ROWS * 2 * MLP * size,
        'upstream': ROWS * HEADS * HEAD_DIM * 2,
        'turned': ROWS * (HEADS + 2) * HEAD_DIM * size,
        'query_parts': BLOCKS * ATTENTION_GROUP * 256 * 8,
        'key_parts': BLOCKS * 16 * 64 * 8,
        'qkv_parts': parts,
        'gate_up_parts': parts,
        'qkv_dots': DOTS * ROWS * 2 * size,
        'gate_up_dots': DOTS * ROWS * 2 * size,
    }
    arena = torch.full((2 * sum(sizes.values()),), PENDING, dtype=torch.uint8, device=device)
    pieces = arena.split([2 * size for size in sizes.values()])
    exchange = {name: piece.view(2, -1) for name, piece in zip(sizes, pieces, strict=True)}
    for name in ('gated_down', 'gated_output', 'hidden', 'turned'):
        words = exchange[name].view(torch.int32).view(2, -1, ROWS // 16, 8, 4, 2, 2)
        zero_rows(words, -(-rows // 16) * 16 if name == 'hidden' else rows)
    flat = exchange['upstream'].view(torch.int32).view(2, -1, HEAD_DIM // 16, 8, 4, 2, 2)
    zero_rows(flat.transpose(1, 2), rows * HEADS)
    return arena, exchange


def launch_back(
    library: KernelLibrary, constants: Mapping[str, int], **values: Tensor | int | None
) -> Launch:
    """The launch of back_layers.cu, compiled with given constants, on given arguments; what is not named is
    null or zero."""
    arguments = fill(BackArguments(), 'back_layers.cu', {**values, 'shared_bytes': SHARED})
    kernel = library.kernel('back_layers', 'back_layers', **constants)
    return Launch(kernel, BLOCKS, LAYERS_THREADS, (arguments,), SHARED)


class ResidentBack:
    """From the gradient behind the last layer to what arrives at the first norm.

    Implements `expert.exact.Back`. weights: as of `pack_layers`; they say whether it is in bf16 or in fp8.
    gradient: of the residual stream, fp32 [64, width], which the launches change. stamps: as of `ExpertLoop`,
    int64 [17, 132].
    """

    def __init__(
        self,
        library: KernelLibrary,
        forward: FusedForward,
        weights: Mapping[str, Tensor],
        cache: PrefixCache,
        gradient: Tensor,
        stamps: Tensor | None = None,
    ) -> None:
        self._library, self._forward, self._cache = library, forward, cache
        self._weights, self._gradient, self._stamps = weights, gradient, stamps
        form = 'fp8' if 'down_scale' in weights else 'bf16'
        self._constants = back_constants(form) | (
            {} if stamps is None else {'TIMELINE': forward.spec.expert.layers // 2}
        )
        self._arena, self._exchange = back_buffers(forward.rows, forward.device, form)
        self._scale = norm_scales(forward.modulation.scale, weights)
        self._initial = self._arena.clone()
        self._arriving = torch.zeros(1, ROWS, WIDTH, dtype=torch.bfloat16, device=forward.device)
        self._steps = [self._launch(step) for step in range(forward.spec.steps)]

    def begin(self) -> None:
        """Launch what comes before the first step."""
        self._arena.copy_(self._initial)

    def run(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Launch a step's way back; what arrives at the first norm, bf16 [1, 64, width], and that norm's
        scale, which is still to be applied."""
        self._steps[step]()
        first = self._forward.modulations(step)[0]
        return self._arriving, self._forward.heads.norms[0] if first is None else first.scale

    def _launch(self, step: int) -> Launch:
        forward, weights, layers = self._forward, self._weights, self._forward.spec.expert.layers
        tables, kept = forward.modulation, forward.kept
        return launch_back(
            self._library,
            self._constants,
            qkv_weights=weights['qkv'],
            output_weights=weights['o'],
            gate_up_weights=weights['gate_up'],
            down_weights=weights['down'],
            output_scale=weights.get('o_scale'),
            down_scale=weights.get('down_scale'),
            gate=tables.gate,
            scale=self._scale,
            rotary=forward.rotary,
            length=self._cache.length,
            **kept,
            gradient=self._gradient,
            arriving=self._arriving,
            stamps=self._stamps,
            **self._exchange,
            layers=layers,
            rows=forward.rows,
            state_token=int(forward.spec.has_state_token),
            capacity=self._cache.capacity,
            table_row=min(step, len(tables.scale) - 1),
            first=layers - 1,
            last=0,
            number=step * layers,
            phases=LAYER | Phase.ACTIONS_IN,
        )
