"""Inputs and comparisons that the engine's tests share: random tensors, poison, and relative error."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flashrt_ros.models.guidance import Guide, guidance_weight
from flashrt_ros.models.spec import NANO_PI05, PolicySpec

NANO_PI0: PolicySpec = replace(NANO_PI05, family='pi0', max_tokens=48)

POISON = float('nan')


def poisoned(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A GPU tensor whose every element shows whether it was written (int8: what does not saturate)."""
    return torch.full(shape, -128 if dtype == torch.int8 else POISON, device='cuda').to(dtype)


def unwritten(x: Tensor) -> bool:
    """Whether all of it is still poison."""
    return bool((x == -128 if x.dtype == torch.int8 else x.float().isnan()).all())


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Fresh random values on the GPU."""
    return (torch.randn(*shape, device='cuda') * scale).to(dtype)


def random_guide(spec: PolicySpec, method: str, rows: int, device: str = 'cpu') -> Guide:
    """Guidance by random actions: `rows` of them frozen, or pulled with random weights."""
    shape = (spec.horizon, spec.action_dim)
    target, weights = torch.randn(1, *shape, device=device), torch.zeros(shape, device=device)
    if method == 'prefix':
        return Guide(method, target, weights, rows, (0.0,) * spec.steps)
    weights[:rows] = torch.rand(rows, spec.action_dim, device=device)
    gammas = tuple(guidance_weight(1 - step / spec.steps, 5.0) for step in range(spec.steps))
    return Guide(method, target, weights, 0, gammas)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| in fp64; NaN if any element is."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return ((found - expected).norm() / expected.norm()).item()


def cosine(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double().cpu().flatten(), expected.double().cpu().flatten()
    return torch.nn.functional.cosine_similarity(found, expected, dim=0).item()
