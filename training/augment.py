"""Pictures as the policy takes them, changed at random so that it learns the scene and not the pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT, ZOOM, TURN = 0.04, 0.04, 0.035
"""Shares of the picture, and rad: largest, up or down."""

BRIGHTNESS, CONTRAST, TINT, GRAIN = 0.18, 0.2, 0.06, 0.02
"""In units of the pixels' range."""


def to_square(pictures: Tensor, size: int) -> Tensor:
    """fp32 [N, 3, height, size] in 0 to 1 -> [N, 3, size, size] in [-1, 1], black above and below."""
    missing = size - pictures.shape[2]
    return F.pad(pictures, (0, 0, missing // 2, missing - missing // 2)) * 2 - 1


def vary(pictures: Tensor) -> Tensor:
    """fp32 [N, 3, height, width] in 0 to 1, each moved, turned, tinted and grained in its own way."""
    count, device = len(pictures), pictures.device

    def amount(most: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, device=device) * 2 - 1) * most

    angle, zoom, aspect = amount(TURN), 1 + amount(ZOOM), pictures.shape[3] / pictures.shape[2]
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    first = torch.stack([cos, -sin / aspect, amount(2 * SHIFT)], -1)
    second = torch.stack([sin * aspect, cos, amount(2 * SHIFT)], -1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode='border', align_corners=False)
    grey = moved.mean((1, 2, 3), keepdim=True)
    lit = grey + (moved - grey) * (1 + amount(CONTRAST, 1, 1, 1)) + amount(BRIGHTNESS, 1, 1, 1)
    tinted = lit * (1 + amount(TINT, 3, 1, 1)) + torch.randn_like(lit) * GRAIN
    return tinted.clamp(0, 1)
