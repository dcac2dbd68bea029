"""The flow-matching loss of a pi0.5 network for a batch, training-time real-time chunking included.

Some chunks begin with a prefix that is already being executed: those rows are given clean, at flow time 0,
and do not count in the loss. So the network learns to go on from what cannot be changed any more.

Sources: openpi `models_pytorch/pi0_pytorch.py` (forward, sample_time) at 15a9616; training-time real-time
chunking, arXiv 2512.05964.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashrt_ros.models.gemma import Cache, rotary_table
from flashrt_ros.models.pi import PiModel

PADDING_WEIGHT = 0.05
"""Of the columns behind the robot's, which every checkpoint has and nobody executes."""


def prefill(model: PiModel, images: Tensor, tokens: Tensor) -> list[Cache]:
    """images: fp32 [B, V, 3, S, S] in [-1, 1]. tokens: int64 [B, T]. Keys and values of every layer."""
    batch, views = images.shape[:2]
    features = model.projector['linear'](model.vision(images.flatten(0, 1)))
    features = features.unflatten(0, (batch, views)).flatten(1, 2)
    return model.language(torch.cat([features, model.language.embed(tokens).to(features.dtype)], 1))


def draw_times(count: int, device: torch.device | str) -> Tensor:
    """Flow times [N] of a beta distribution (1.5, 1): x ** (2 / 3) of a uniform x; never 0."""
    return torch.rand(count, device=device) ** (2 / 3) * 0.999 + 0.001


def draw_prefixes(count: int, most: int, device: torch.device | str) -> Tensor:
    """Rows frozen [N]: none in half of the cases, else 1 to `most`."""
    if most == 0:
        return torch.zeros(count, dtype=torch.int64, device=device)
    rows = torch.randint(1, most + 1, (count,), device=device)
    return torch.where(torch.rand(count, device=device) < 0.5, 0, rows)


def loss(
    model: PiModel,
    images: Tensor,
    tokens: Tensor,
    actions: Tensor,
    noise: Tensor,
    times: Tensor,
    prefixes: Tensor,
    width: int,
) -> Tensor:
    """Mean square of the flow's error.

    images, tokens: of B observations. actions: fp32 [B, H, A] normalised. noise: [K * B, H, A], times and
    prefixes: [K * B]; K draws for each observation, all with the same prefix cache. width: robot's columns.
    """
    caches = prefill(model, images, tokens)
    draws = len(noise) // len(actions)
    caches = [(keys.repeat(draws, 1, 1, 1), values.repeat(draws, 1, 1, 1)) for keys, values in caches]
    actions = actions.repeat(draws, 1, 1)
    frozen = torch.arange(actions.shape[1], device=actions.device) < prefixes[:, None]
    share = torch.where(frozen, 0.0, times[:, None])[..., None]
    flow = velocity(model, caches, share * noise + (1 - share) * actions, times, frozen)
    errors = (flow - (noise - actions)).square() * ~frozen[..., None]
    counted = (~frozen).sum()
    robot, padding = errors[..., :width].sum() / width, errors[..., width:].sum() / (errors.shape[-1] - width)
    return (robot + PADDING_WEIGHT * padding) / counted


def velocity(model: PiModel, caches: list[Cache], noisy: Tensor, times: Tensor, frozen: Tensor) -> Tensor:
    """The flow field for a batch in which every example has a time of its own. frozen: bool [B, H]."""
    # [B, norms, 3, W] -> [norms, 3, B, H, W], which broadcasts over the tokens of each example.
    at_time = model.conditions(times).permute(1, 2, 0, 3)[..., None, :]
    clean = model.conditions(torch.zeros_like(times[:1])).permute(1, 2, 0, 3)[..., None, :]
    modulation = torch.where(frozen[:, :, None], clean, at_time)
    length = caches[0][0].shape[2]
    positions = torch.arange(length, length + noisy.shape[1], device=noisy.device)
    return model.velocity(noisy, modulation, caches, rotary_table(positions, model.spec.expert.head_dim))
