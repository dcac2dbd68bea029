"""Device memory that outlives a call: the prefix cache and what goes in and out of the graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashrt_ros.models.spec import PolicySpec

TILE_ROWS = 64
"""Row counts are rounded up to this, so that kernels may read whole tiles."""


def round_up(count: int, multiple: int = TILE_ROWS) -> int:
    return -(-count // multiple) * multiple


def rotary_table(positions: int, head_dim: int, device: torch.device) -> Tensor:
    """(cos, sin) fp32 [positions, head_dim / 2, 2] at theta 1e4, computed in fp64."""
    frequencies = 1e4 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()], -1).float().to(device)


@dataclass
class PrefixCache:
    """Keys (after RoPE) and values of the prefix, for every layer, and how many rows of them are valid.

    keys, values: bf16 [layers, capacity, head_dim]; rows from `length` on are finite and meaningless. The
    last rows leave room for the suffix. length: int32 [1]: present views * 256 + prompt tokens.
    """

    keys: Tensor
    values: Tensor
    length: Tensor

    @staticmethod
    def allocate(
        spec: PolicySpec, views: int, device: torch.device, length: Tensor | None = None
    ) -> PrefixCache:
        """length: where it lies already, if it does."""
        suffix = spec.horizon + spec.has_state_token
        rows = round_up(views * spec.vision.tokens + round_up(spec.max_tokens) + suffix)
        shape = (spec.language.layers, rows, spec.language.head_dim)
        keys, values = (torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
        if length is None:
            length = torch.zeros(1, dtype=torch.int32, device=device)
        return PrefixCache(keys, values, length)

    @property
    def capacity(self) -> int:
        return self.keys.shape[1]


@dataclass
class Inputs:
    """What a call writes before vision and prefill run, camera frames aside (`FrameInputs`).

    images: fp32 [views, 3, size, size] in [-1, 1]; present views come first. words: int32 [max_tokens rounded
    up + 1], the tokens and, last, `PrefixCache.length`, so that one copy writes both.
    """

    images: Tensor
    words: Tensor

    @staticmethod
    def allocate(spec: PolicySpec, views: int, device: torch.device) -> Inputs:
        size = spec.vision.image_size
        return Inputs(
            images=torch.zeros(views, 3, size, size, device=device),
            words=torch.zeros(round_up(spec.max_tokens) + 1, dtype=torch.int32, device=device),
        )

    @property
    def tokens(self) -> Tensor:
        """int32 [max_tokens rounded up]"""
        return self.words[:-1]

    @property
    def length(self) -> Tensor:
        """int32 [1]"""
        return self.words[-1:]
