"""Which kernels a policy needs, to compile them side by side before the first of them is launched."""

from __future__ import annotations

from functools import partial

import torch

from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.engine import prompt_sizes
from flashrt_ros.engine.expert.back import back_constants
from flashrt_ros.engine.expert.denoise import covers
from flashrt_ros.engine.expert.exact import back_format
from flashrt_ros.engine.expert.launches import format_constants
from flashrt_ros.engine.frame_inputs import Sizes
from flashrt_ros.engine.operators.backward import backward_builds
from flashrt_ros.engine.operators.exact_ends import ends_build
from flashrt_ros.engine.operators.forward import (
    attention_builds,
    layer_norm_constants,
    owns,
    portable_attention,
    vision_attention_build,
)
from flashrt_ros.engine.operators.fused_gemm import MOST_PARTS, RAW, build, plain_tiling
from flashrt_ros.engine.operators.wide_gemm import builds as wide_builds
from flashrt_ros.engine.operators.wide_gemm import covers as covers_prefill
from flashrt_ros.engine.towers.vision_tilings import sum_parts, tiling_builds, tower_tilings
from flashrt_ros.engine.weights.formats import BF16, TOWERS, constants, product_dtype, tower_format
from flashrt_ros.models.spec import GemmaSpec, PolicySpec, VisionSpec

Builds = list[tuple[str, dict[str, int]]]


def policy_builds(
    gpu: Gpu, spec: PolicySpec, precision: str, views: int, uneven: frozenset[str] = frozenset()
) -> Builds:
    """Kernel files and constants of vision, prefill and denoise loop. uneven: as `weights.store.pack`."""
    fused, wide = covers(gpu, spec), covers_prefill(gpu, spec, precision, views)
    vision, language, expert = (
        tower_format(spec, precision, tower, fused and wide, uneven) for tower in TOWERS
    )
    builds = [('rope', {'HEADS': 0, 'DIM': spec.language.head_dim})]
    for tower in {vision, 'fp8'} if vision == 'int8' and uneven else {vision}:
        builds += _vision(gpu, spec.vision, tower)
    for tower in {language, 'fp8'} if language == 'int8' and uneven else {language}:
        builds += _gemma(gpu, spec.language, 'language', tower)
        first = product_dtype('language.0.qkv', tower)
        builds.append(('embedding', {'WIDTH': spec.language.width, **constants(first)}))
        builds += wide_builds(tower) if wide else []
        builds += _own_products(gpu, spec, views, first)
    if fused:
        return [*builds, ('expert_layers', format_constants(expert))]
    final_norm = ('norm', {'WIDTH': spec.expert.width, **constants(BF16)})
    return [*builds, *_gemma(gpu, spec.expert, 'expert', expert), final_norm, ('flow_step', {})]


def exact_builds(
    gpu: Gpu, spec: PolicySpec, precision: str, views: int, uneven: frozenset[str] = frozenset()
) -> Builds:
    """Kernel files and constants of `expert.exact.ExactDenoise`; arguments as of `policy_builds`."""
    tower = spec.expert
    embedding: Builds = [('flow_step', {})] if spec.has_state_token else []
    if not covers(gpu, spec):
        sums = ('gemma_attention', portable_attention(gpu, tower.heads, tower.head_dim, torch.bfloat16))
        return [*_gemma(gpu, tower, 'expert', 'bf16'), sums, *backward_builds(gpu, spec), *embedding]
    wide = covers_prefill(gpu, spec, precision, views)
    layers = format_constants(tower_format(spec, precision, 'expert', wide, uneven)) | {'KEEPS': 1}
    ends = ends_build(tower.width, spec.action_dim)
    if spec.has_state_token:
        embedding.append(('norm_backward', {'WIDTH': tower.width}))
    back = ('back_layers', back_constants(back_format(gpu, spec, precision)))
    return [('expert_layers', layers), back, ends, *embedding]


def _vision(gpu: Gpu, spec: VisionSpec, tower: str) -> Builds:
    dtype = partial(product_dtype, tower_format=tower)
    tilings = tower_tilings(gpu, spec, tower != 'bf16')
    norms = [(parts, False) for parts in sum_parts(tilings)] + [(1, True)]
    return [
        ('preprocess', Sizes.of(spec).constants),
        ('activation', {'WIDTH': spec.mlp, **constants(dtype('vision.0.down'))}),
        vision_attention_build(gpu, spec.tokens, spec.heads, spec.head_dim, dtype('vision.0.o')),
        *(('layer_norm', layer_norm_constants(spec.width, *norm, dtype('vision.0.qkv'))) for norm in norms),
        *tiling_builds(tilings, dtype('vision.0.qkv')),
    ]


def _gemma(gpu: Gpu, spec: GemmaSpec, name: str, tower: str) -> Builds:
    dtype = partial(product_dtype, tower_format=tower)
    return [
        ('norm', {'WIDTH': spec.width, **constants(dtype(f'{name}.0.qkv'))}),
        ('activation', {'WIDTH': spec.mlp, **constants(dtype(f'{name}.0.down'))}),
        ('rope', {'HEADS': spec.heads, 'DIM': spec.head_dim}),
        *attention_builds(gpu, spec.heads, spec.head_dim, dtype(f'{name}.0.o')),
    ]


def _own_products(gpu: Gpu, spec: PolicySpec, views: int, dtype: torch.dtype) -> Builds:
    """Of `Operators.multiply`: in the prefill QKV and output, the last layer's KV, and the projector."""
    tower, patches = spec.language, spec.vision.tokens
    attended, counts = tower.heads * tower.head_dim, range(1, views + 1)
    rows = [count * patches + words for count in counts for words in prompt_sizes(spec.max_tokens)]
    shapes = [  # columns, bytes of a row, most parts
        (attended + 2 * tower.head_dim, tower.width, MOST_PARTS),
        (tower.width, attended, MOST_PARTS),
        (2 * tower.head_dim, tower.width, 1),
    ]
    cases = {(count, *shape) for count in rows for shape in shapes}
    cases |= {(count * patches, tower.width, spec.vision.width, 1) for count in counts}
    own = [case for case in cases if owns(gpu, dtype, *case[1:3])]
    tilings = {plain_tiling(*case[:3], gpu.multiprocessors, case[3]) for case in own}
    return [build(tiling, RAW, dtype) for tiling in sorted(tilings, key=repr)]
