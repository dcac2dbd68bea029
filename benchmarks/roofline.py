"""How fast a policy could be on this GPU at all: operations over matrix rate, bytes over copy bandwidth.

A multiply-add counts as two; matrix products and attention are counted, nothing else. A stage takes at least
the larger of its two times, a policy the sum of its stages.
"""

from __future__ import annotations

from collections.abc import Mapping

from flashrt_ros.models.spec import GemmaSpec, PolicySpec, VisionSpec

WEIGHT_BYTES = {'bf16': 2, 'fp8': 1}
CACHE_BYTES = 2
"""Keys and values are bf16 in either precision."""


def floors(
    spec: PolicySpec, precision: str, views: int, horizon: int, tokens: int, ceilings: Mapping[str, float]
) -> dict[str, float]:
    """Stage -> milliseconds it takes at least. ceilings: `machine.ceilings` of the same GPU."""
    prefix, suffix = views * spec.vision.tokens + tokens, horizon + spec.has_state_token
    cache = prefix * spec.language.layers * 2 * spec.language.head_dim * CACHE_BYTES
    step_operations, step_weights = _gemma(spec.expert, suffix, prefix + suffix)
    ends = 2 * spec.action_dim * spec.expert.width

    def least(operations: float, weights: float, other_bytes: float = 0.0) -> float:
        compute = operations / ceilings[f'{precision}_tflop_s'] / 1e9
        memory = (weights * WEIGHT_BYTES[precision] + other_bytes) / ceilings['copy_tb_s'] / 1e9
        return max(compute, memory)

    return {
        'vision': least(*_siglip(spec.vision, spec.language.width, views)),
        'prefill': least(*_gemma(spec.language, prefix, prefix, kv_only_last=True)),
        'denoise': spec.steps * least(step_operations + 2 * suffix * ends, step_weights + ends, cache),
    }


def _siglip(spec: VisionSpec, projected: int, views: int) -> tuple[float, float]:
    """(operations, weights) of tower, patch embedding and projector."""
    layer = 4 * spec.width**2 + 2 * spec.width * spec.mlp
    weights = spec.layers * layer + 3 * spec.patch**2 * spec.width + spec.width * projected
    attention = spec.layers * 4 * spec.tokens**2 * spec.width
    return views * (2 * spec.tokens * weights + attention), weights


def _gemma(spec: GemmaSpec, rows: int, keys: int, kv_only_last: bool = False) -> tuple[float, float]:
    """(operations, weights) of a tower; kv_only_last: its last layer ends after keys and values."""
    ends = 2 * spec.width * spec.heads * spec.head_dim + 3 * spec.width * spec.mlp
    weights = spec.layers * (ends + 2 * spec.width * spec.kv_heads * spec.head_dim) - kv_only_last * ends
    attention = (spec.layers - kv_only_last) * 4 * rows * keys * spec.heads * spec.head_dim
    return 2 * rows * weights + attention, weights
