"""Sizes of the pi policies: three towers and the action chunk. Everything else follows from them.

Source of the published sizes: openpi `models/gemma.py`, `models/siglip.py` and `models/pi0_config.py` at
15a9616.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionSpec:
    """SigLIP tower. Square images of `image_size` pixels give `tokens` patches of `patch` x `patch`."""

    layers: int = 27
    width: int = 1152
    heads: int = 16
    mlp: int = 4304
    patch: int = 14
    image_size: int = 224

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch) ** 2

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class GemmaSpec:
    """A Gemma tower with grouped-query attention."""

    layers: int
    width: int
    mlp: int
    heads: int = 8
    kv_heads: int = 1
    head_dim: int = 256


@dataclass(frozen=True)
class PolicySpec:
    """A pi0 or pi0.5 network.

    horizon: rows of an action chunk (H). action_dim: padded action and state width, 32 in every published
    checkpoint.
    max_tokens: longest prompt in tokens. steps: flow integration steps.
    """

    family: str
    vision: VisionSpec
    language: GemmaSpec
    expert: GemmaSpec
    vocab: int = 257152
    horizon: int = 50
    action_dim: int = 32
    max_tokens: int = 200
    steps: int = 10

    @property
    def has_state_token(self) -> bool:
        """pi0 gives the state to the action expert as a token; pi0.5 writes it into the prompt."""
        return self.family == 'pi0'

    @property
    def has_ada_rms(self) -> bool:
        """pi0.5 modulates the expert's norms by flow time; pi0 mixes time into the action tokens."""
        return self.family == 'pi05'


GEMMA_2B = GemmaSpec(layers=18, width=2048, mlp=16384)
GEMMA_300M = GemmaSpec(layers=18, width=1024, mlp=4096)

PI0 = PolicySpec('pi0', VisionSpec(), GEMMA_2B, GEMMA_300M, max_tokens=48)
PI05 = PolicySpec('pi05', VisionSpec(), GEMMA_2B, GEMMA_300M, max_tokens=200)

NANO_PI05 = PolicySpec(
    'pi05',
    VisionSpec(layers=2, width=144, heads=2, mlp=304),
    GemmaSpec(layers=2, width=256, mlp=512, head_dim=64),
    GemmaSpec(layers=2, width=128, mlp=256, head_dim=64),
    vocab=2048,
)
"""A pi0.5 small enough for tests and for a laptop's CPU; every structural feature of the real one is there.
"""

TINY_PI05 = PolicySpec(
    'pi05',
    VisionSpec(layers=1, width=144, heads=2, mlp=64),
    GemmaSpec(layers=1, width=64, mlp=64, head_dim=16),
    GemmaSpec(layers=1, width=32, mlp=64, head_dim=16),
    vocab=2048,
    horizon=20,
    steps=2,
)
"""The smallest that every backend takes, fp8 included: for whatever is not about the network itself."""
