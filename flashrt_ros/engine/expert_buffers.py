"""Static device memory of the action expert's denoise loop, and the sizes its kernels are written for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashrt_ros.engine.expert_weights import PRODUCTS, ExpertWeights
from flashrt_ros.errors import BackendError
from flashrt_ros.models.gemma import rotary_table

WIDTH, HEADS, HEAD_DIM, MLP = 1024, 8, 256, 4096
ACTION_DIM = 32
ROWS = 64
"""Rows of the matrix products, the height of one wgmma; suffix tokens beyond the last one are ignored."""

STATISTICS = 32
"""Partial sums of squares a row: one for each writer of 32 columns."""

ATTENTION_CLUSTER, ATTENTION_QUERIES, ATTENTION_MAX_KEYS = 8, 32, 160


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
    """rows: suffix tokens. x: residual stream fp32 [64, 1024]. scales: fp32 [2, L, 4], of activations, and
    inverses.

    embedded, normed [2], attended and hidden hold activations in fragment order (kernels/expert_common.cuh).
    base: what pi0's second embedding layer adds to: its bias, and in row 0 the state token.
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
        self.prefix_capacity = shape.prefix_capacity
        size = 1 if weights.precision == 'fp8' else 2

        def zeros(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        self.actions = zeros(shape.horizon, ACTION_DIM)
        self.x, self.base = zeros(ROWS, WIDTH), zeros(ROWS, WIDTH)
        if heads.mixer_bias is not None:
            self.base[1:] = heads.mixer_bias
        self.ones = torch.ones(WIDTH, device=device)
        self.statistics = zeros(2, STATISTICS, ROWS)
        self.embedded = zeros(ROWS * WIDTH * 2, dtype=torch.uint8)
        self.normed = zeros(2, ROWS * WIDTH * size, dtype=torch.uint8)
        self.attended = zeros(ROWS * HEADS * HEAD_DIM * size, dtype=torch.uint8)
        self.hidden = zeros(ROWS * MLP * size, dtype=torch.uint8)
        self.queries = zeros(ROWS * HEADS, HEAD_DIM, dtype=torch.bfloat16)
        self.keys, self.values = zeros(2, ROWS, HEAD_DIM, dtype=torch.bfloat16)
        positions = torch.arange(shape.prefix_capacity + ROWS, device=device)
        self.rotary = torch.stack(rotary_table(positions, HEAD_DIM), -1).contiguous()
        self.scales = _scales(weights.precision, layers, activation_scales, device)


def _scales(precision: str, layers: int, activation_scales: Tensor | None, device: torch.device) -> Tensor:
    if precision == 'bf16':
        return torch.ones(2, layers, len(PRODUCTS), device=device)
    if activation_scales is None or activation_scales.shape != (layers, len(PRODUCTS)):
        raise BackendError(
            f'fp8 needs activation scales of shape {(layers, len(PRODUCTS))}',
            'action expert',
            'calibrate first',
        )
    scales = activation_scales.to(device, torch.float32)
    return torch.stack([scales, 1 / scales])


def attention_bytes(capacity: int) -> int:
    """Dynamic shared memory of expert_attention.cu for prefixes of up to `capacity` tokens."""
    slots, row_bytes = _attention_slots(capacity), HEAD_DIM * 2
    merging = ATTENTION_CLUSTER * 4 * 32 * 16
    return max(slots * row_bytes, merging) + slots * row_bytes + ATTENTION_QUERIES * (slots + 4) * 4


def _attention_slots(capacity: int) -> int:
    share = -(-capacity // (8 * ATTENTION_CLUSTER)) * 8
    return -(-(share + ROWS // ATTENTION_CLUSTER) // 16) * 16


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
