"""SigLIP So400m/14: one square image -> one token per patch.

Notation: V views, T patches of an image, W width.
Source: `SiglipVisionModel` of transformers, with the configuration that PaliGemma gives it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashrt_ros.models.linear import Linear
from flashrt_ros.models.spec import VisionSpec

EPSILON = 1e-6


class VisionTower(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.embeddings = Embeddings(spec)
        self.encoder = Encoder(spec)
        self.post_layernorm = nn.LayerNorm(spec.width, EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """Images fp32 [V, 3, S, S] in [-1, 1] -> [V, T, W] in the dtype of the layers.

        In bf16 mode patch and position embedding are fp32 and their sum is rounded, as openpi does it.
        """
        return self.post_layernorm(self.encoder(self.embeddings(images).to(self.post_layernorm.weight.dtype)))


class Embeddings(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, spec.width, spec.patch, stride=spec.patch)
        self.position_embedding = nn.Embedding(spec.tokens, spec.width)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        return patches + self.position_embedding.weight


class Encoder(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(spec.width, EPSILON)
        self.self_attn = Attention(spec)
        self.layer_norm2 = nn.LayerNorm(spec.width, EPSILON)
        self.mlp = Mlp(spec)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Attention(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.q_proj = Linear(spec.width, spec.width)
        self.k_proj = Linear(spec.width, spec.width)
        self.v_proj = Linear(spec.width, spec.width)
        self.out_proj = Linear(spec.width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.fc1 = Linear(spec.width, spec.mlp)
        self.fc2 = Linear(spec.mlp, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate='tanh'))


def as_prefix(features: Tensor) -> Tensor:
    """Features of several views [V, T, W] -> one sequence [1, V * T, W], view after view."""
    return torch.flatten(features, 0, 1)[None]
