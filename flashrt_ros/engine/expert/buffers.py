"""Static device memory of the action expert's denoise loop, and the sizes its kernels are written for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashrt_ros.engine.expert.weights import PRODUCTS, ExpertWeights
from flashrt_ros.engine.weights.formats import product_dtype, scale_ratio
from flashrt_ros.errors import BackendError
from flashrt_ros.models.gemma import rotary_table

WIDTH, HEADS, HEAD_DIM, MLP = 1024, 8, 256, 4096
ACTION_DIM = 32
ROWS = 64
"""Rows of the matrix products, the height of one wgmma; suffix tokens beyond the last one are ignored."""

STATISTICS = 32
"""Partial sums of squares a row: one for each writer of 32 columns."""

ATTENTION_GROUP, ATTENTION_QUERIES, ATTENTION_MAX_KEYS = 8, 32, 144

BLOCKS = 128
"""Blocks that exchange partial sums (kernels/expert_residual.cuh)."""

FRAGMENTS = ('normed_qkv', 'normed_gate_up', 'attended', 'hidden', 'embedded')
"""Exchange buffers in the order of fragments (kernels/expert_common.cuh)."""

PENDING = 255
"""What every byte of the exchange buffers holds before the loop starts (kernels/expert_exchange.cuh)."""


@dataclass(frozen=True)
class ExpertShape:
    """horizon: action rows. prefix_capacity: most prefix tokens."""

    horizon: int
    prefix_capacity: int


@dataclass(frozen=True)
class Prefix:
    """What the prefill fills: keys (rotated) and values bf16 [L, capacity, 256], length int32 [1]."""

    keys: Tensor
    values: Tensor
    length: Tensor


class ExpertBuffers:
    """rows: suffix tokens. scales: fp32 [2, L, 4], of activations, and inverses.

    exchange: what blocks tell each other, by name, uint8 [2, bytes], all of it parts of `arena`, which the
    loop begins by making equal to `initial`. base: what pi0's second embedding layer adds to: its bias, and
    in row 0 the state token.
    """

    def __init__(
        self,
        weights: ExpertWeights,
        activation_scales: Tensor | None,
        shape: ExpertShape,
        device: torch.device,
    ) -> None:
        heads = weights.heads
        layers = len(weights.products['qkv'].weights)
        self.rows = shape.horizon + (heads.mixer is not None)

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, device=device)

        self.actions = zeros(shape.horizon, ACTION_DIM)
        self.base = zeros(ROWS, WIDTH)
        if heads.mixer_bias is not None:
            self.base[1:] = heads.mixer_bias
        self.arena, self.exchange = exchange_buffers(weights.precision, self.rows, device)
        self.initial = self.arena.clone()
        positions = torch.arange(shape.prefix_capacity + ROWS, device=device)
        self.rotary = torch.stack(rotary_table(positions, HEAD_DIM), -1).contiguous()
        self.scales = _scales(weights.precision, layers, activation_scales, device)


def exchange_buffers(precision: str, rows: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """(arena, its parts by their names in kernels/expert_arguments.cuh, [2, bytes] each), as the loop expects
    them: PENDING, and zero in rows beyond the last."""
    size = 2 if precision == 'bf16' else 1
    parts = BLOCKS * 4 * 128 * 16
    sizes = {
        'normed_qkv': ROWS * WIDTH * size,
        'statistics_qkv': STATISTICS * ROWS * 4,
        'normed_gate_up': ROWS * WIDTH * size,
        'statistics_gate_up': STATISTICS * ROWS * 4,
        'queries': ROWS * HEADS * HEAD_DIM * 2,
        'keys': ROWS * HEAD_DIM * 2,
        'values': ROWS * HEAD_DIM * 2,
        'sums': BLOCKS * ATTENTION_GROUP * 256 * 8,
        'softmax': BLOCKS * ATTENTION_QUERIES * 8,
        'attended': ROWS * HEADS * HEAD_DIM * size,
        'output_parts': parts,
        'hidden': ROWS * MLP * size,
        'down_parts': parts,
        'mixer_parts': parts,
        'embedded': ROWS * WIDTH * 2,
        'velocities': BLOCKS * 128 * 16,
        'squares': BLOCKS * 16 * 8,
    }
    arena = torch.full((2 * sum(sizes.values()),), PENDING, dtype=torch.uint8, device=device)
    pieces = arena.split([2 * length for length in sizes.values()])
    exchange = {name: piece.view(2, -1) for name, piece in zip(sizes, pieces, strict=True)}
    words = {name: exchange[name].view(torch.int32).view(2, -1, ROWS // 16, 8, 4, 2, 2) for name in FRAGMENTS}
    for name in FRAGMENTS:
        end = -(-rows // 16) * 16 if name == 'hidden' else rows  # of which whole row tiles are written
        zero_rows(words[name], end)
    words['embedded'][:, :, 0, 0, :, :, 0] = 0  # row 0, pi0's state token
    queries = exchange['queries'].view(torch.int32).view(2, -1, HEAD_DIM // 16, 8, 4, 2, 2)
    zero_rows(queries.transpose(1, 2), rows * HEADS)
    for name in ('statistics_qkv', 'statistics_gate_up'):
        exchange[name].view(torch.int32).view(2, STATISTICS, ROWS)[..., rows:] = 0
    return arena, exchange


def zero_rows(words: Tensor, rows: int) -> None:
    """Zero the rows from `rows` on of words of fragments [2, steps, row tiles, 8, 4, 2, 2]; the last index is
    for the row 8 further."""
    tiles = words.shape[2]
    row = torch.arange(tiles * 16, device=words.device).view(tiles, 2, 8).transpose(1, 2)
    words.masked_fill_((row >= rows)[:, :, None, None, :], 0)


def _scales(precision: str, layers: int, activation_scales: Tensor | None, device: torch.device) -> Tensor:
    if precision == 'bf16':
        return torch.ones(2, layers, len(PRODUCTS), device=device)
    if activation_scales is None or activation_scales.shape != (layers, len(PRODUCTS)):
        raise BackendError(
            f'{precision} needs activation scales of shape {(layers, len(PRODUCTS))}',
            'action expert',
            'calibrate first',
        )
    ratios = [scale_ratio(product_dtype(f'expert.{name}', precision)) for name in PRODUCTS]
    scales = activation_scales.to(device, torch.float32) * torch.tensor(ratios, device=device)
    return torch.stack([scales, 1 / scales])


def _attention_slots(capacity: int) -> int:
    share = -(-capacity // (8 * ATTENTION_GROUP)) * 8
    return -(-(share + ROWS // ATTENTION_GROUP) // 16) * 16


def check_shape(shape: ExpertShape, rows: int, prefix: Prefix) -> None:
    """Refuse what the kernels have no room for."""
    if shape.horizon < 1 or rows > ROWS:
        raise BackendError(
            f'horizon {shape.horizon} gives {rows} rows, the kernels take 1 to {ROWS}',
            'action expert',
            'choose a checkpoint with a shorter horizon',
        )
    too_long = _attention_slots(shape.prefix_capacity) > ATTENTION_MAX_KEYS
    if too_long or prefix.keys.shape[1] < shape.prefix_capacity:
        raise BackendError(
            f'a prefix of {shape.prefix_capacity} tokens does not fit (buffers hold {prefix.keys.shape[1]})',
            'action expert',
            'use fewer views or a shorter prompt',
        )
