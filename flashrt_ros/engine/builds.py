"""Which kernels a policy needs, to compile them side by side before the first of them is launched."""

from __future__ import annotations

from flashrt_ros.engine.device import Gpu
from flashrt_ros.engine.fused_denoise import covers
from flashrt_ros.engine.operators import attention_builds, layer_norm_constants, vision_attention_build
from flashrt_ros.engine.packing import expert_precision, patch_columns
from flashrt_ros.engine.vision_tilings import sum_parts, tiling_builds, tower_tilings
from flashrt_ros.engine.wide_gemm import builds as wide_builds
from flashrt_ros.engine.wide_gemm import covers as covers_prefill
from flashrt_ros.models.spec import GemmaSpec, PolicySpec, VisionSpec

Builds = list[tuple[str, dict[str, int]]]


def policy_builds(gpu: Gpu, spec: PolicySpec, precision: str, views: int) -> Builds:
    """Kernel files and constants of vision, prefill and denoise loop."""
    fp8 = int(precision == 'fp8')
    builds = _vision(gpu, spec.vision, fp8) + _gemma(gpu, spec.language, fp8)
    builds.append(('embedding', {'WIDTH': spec.language.width, 'FP8': fp8}))
    builds.append(('rope', {'HEADS': 0, 'DIM': spec.language.head_dim}))
    if covers_prefill(gpu, spec, precision, views):
        builds += wide_builds(precision == 'fp8')
    expert_fp8 = int(expert_precision(spec, precision) == 'fp8')
    if covers(gpu, spec):
        return [*builds, ('expert_layers', {'FP8': expert_fp8}), ('expert_flow', {})]
    final_norm = ('norm', {'WIDTH': spec.expert.width, 'FP8': 0})
    return [*builds, *_gemma(gpu, spec.expert, expert_fp8), final_norm, ('flow_step', {})]


def _vision(gpu: Gpu, spec: VisionSpec, fp8: int) -> Builds:
    precision = 'fp8' if fp8 else 'bf16'
    tilings = tower_tilings(gpu, spec, precision)
    norms = [(parts, False) for parts in sum_parts(tilings)] + [(1, True)]
    return [
        ('embedding', {'SIZE': spec.image_size, 'PATCH': spec.patch, 'COLUMNS': patch_columns(spec)}),
        ('activation', {'WIDTH': spec.mlp, 'FP8': fp8}),
        vision_attention_build(gpu, spec.tokens, spec.heads, spec.head_dim, fp8),
        *(('layer_norm', layer_norm_constants(spec.width, *norm, fp8)) for norm in norms),
        *tiling_builds(tilings, precision),
    ]


def _gemma(gpu: Gpu, spec: GemmaSpec, fp8: int) -> Builds:
    return [
        ('norm', {'WIDTH': spec.width, 'FP8': fp8}),
        ('activation', {'WIDTH': spec.mlp, 'FP8': fp8}),
        ('rope', {'HEADS': spec.heads, 'DIM': spec.head_dim}),
        *attention_builds(gpu, spec.heads, spec.head_dim, fp8),
    ]
