"""Ranges of what enters the action expert's four products, observed on the plain model: fp8 scales come
from them.

with ExpertRanges(model.expert) as ranges:
    model.denoise(noise, prefix, table)          # as often as there are observations
scales = activation_scales(ranges.largest)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flashrt_ros.engine.weights.formats import E4M3, HEADROOM, LARGEST
from flashrt_ros.models.gemma import ExpertTower


class ExpertRanges:
    """Largest magnitudes by layer and product, fp32 [L, 4], of what the tower computes while entered.

    The norms' 1 / rms is applied behind the product (`engine.expert.weights`), so the range in front of q,
    k, v and of gate, up is that of x * (1 + scale).
    """

    def __init__(self, tower: ExpertTower) -> None:
        self.largest = torch.zeros(len(tower.layers), 4, device=next(tower.parameters()).device)
        self._tower = tower
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> ExpertRanges:
        for i, layer in enumerate(self._tower.layers):
            names = ('input_layernorm', 'self_attn.o_proj', 'post_attention_layernorm', 'mlp.down_proj')
            for j, name in enumerate(names):
                module = layer.get_submodule(name)
                self._hooks.append(module.register_forward_pre_hook(self._observer(i, j)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _observer(self, layer: int, product: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def observe(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            largest = _entering(module, *arguments).abs().amax()
            self.largest[layer, product] = torch.maximum(self.largest[layer, product], largest)

        return observe


def _entering(module: nn.Module, x: Tensor, modulation: Tensor | None = None) -> Tensor:
    """What the following product multiplies: the module's input, scaled if the module is a norm."""
    if isinstance(module, nn.Linear):
        return x.float()
    scale = module.get_parameter('weight').float() if modulation is None else modulation[0]
    return x.float() * (1 + scale)


def activation_scales(largest: Tensor) -> Tensor:
    """Largest magnitudes [L, 4] -> scales [L, 4] of E4M3. A product's input is divided by its scale, then
    rounded."""
    return largest.clamp_min(1e-12) * (HEADROOM[E4M3] / LARGEST[E4M3])
