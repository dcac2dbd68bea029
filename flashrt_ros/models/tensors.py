"""Names and shapes of a pi policy's tensors, and what to say when a file does not match them.

The canonical names are openpi's (`PI0Pytorch.state_dict()`), with one rule more: the token embedding is
always called `EMBEDDING`, whether the file stores it as embed_tokens or as the lm_head that is tied to it.

Source of the layout: openpi `models_pytorch/pi0_pytorch.py` and `gemma_pytorch.py` at 15a9616.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from flashrt_ros.errors import CheckpointError
from flashrt_ros.models.spec import GemmaSpec, PolicySpec, VisionSpec

PALIGEMMA = 'paligemma_with_expert.paligemma.model.'
VISION = PALIGEMMA + 'vision_tower.vision_model.'
PROJECTOR = PALIGEMMA + 'multi_modal_projector.'
LANGUAGE = PALIGEMMA + 'language_model.'
EXPERT = 'paligemma_with_expert.gemma_expert.model.'

EMBEDDING = LANGUAGE + 'embed_tokens.weight'
LM_HEAD = 'paligemma_with_expert.paligemma.lm_head.weight'
EXPERT_LM_HEAD = 'paligemma_with_expert.gemma_expert.lm_head.weight'
"""Stored by openpi and lerobot, used by nobody."""

SIGLIP_HEAD_DIM = 72
"""Head size of SigLIP So400m, the only vision tower of the pi family; no file states it."""

Shape = tuple[int, ...]

FP32_PARTS = (
    'embeddings.patch_embedding',
    'embeddings.position_embedding',
    'input_layernorm',  # of both Gemma towers, adaRMS denses included; SigLIP's norms are called otherwise
    'post_attention_layernorm',
    'model.norm',
)
"""Parts of a name that openpi keeps in fp32 in bf16 mode (`to_bfloat16_for_selected_params`)."""


def expected_tensors(spec: PolicySpec) -> dict[str, Shape]:
    """Every tensor that a checkpoint of this size holds: canonical name -> shape, [out, in] for matrices."""
    shapes: dict[str, Shape] = {}
    shapes.update(_vision(spec.vision))
    shapes.update(_linear(PROJECTOR + 'linear', spec.language.width, spec.vision.width))
    shapes[EMBEDDING] = (spec.vocab, spec.language.width)
    shapes.update(_gemma(LANGUAGE, spec.language, ada_rms=False))
    shapes.update(_gemma(EXPERT, spec.expert, ada_rms=spec.has_ada_rms))
    shapes.update(_heads(spec))
    return shapes


def parameter_count(spec: PolicySpec) -> int:
    """Parameters that the policy needs: 3353.4 M for pi0.5 at its published size."""
    return sum(math.prod(shape) for shape in expected_tensors(spec).values())


def stays_fp32(name: str) -> bool:
    """Whether openpi's bf16 mode keeps it in fp32: norms, patch and position embedding, action heads."""
    inside_towers = name.startswith('paligemma_with_expert.')
    return not inside_towers or any(part in name for part in FP32_PARTS)


def spec_from_shapes(
    shapes: Mapping[str, Shape], where: str, horizon: int, max_tokens: int | None = None, steps: int = 10
) -> PolicySpec:
    """Read every size from the tensors themselves, so that a checkpoint of any size loads.

    Sizes that repeat over layers are decided by the majority, so that one damaged tensor is reported as
    itself.
    Raises CheckpointError if the tensors are not those of pi0 or pi0.5.
    """
    _require_pi(shapes, where)
    family = 'pi05' if 'time_mlp_in.weight' in shapes else 'pi0'
    language = _gemma_spec(shapes, LANGUAGE, where)
    expert = _gemma_spec(shapes, EXPERT, where)
    if language.layers != expert.layers or language.head_dim != expert.head_dim:
        raise CheckpointError(
            f'the language tower has {language.layers} layers with heads of {language.head_dim}, '
            f'the action expert {expert.layers} with heads of {expert.head_dim}',
            where,
            'use a checkpoint whose towers share layers and head size; attention joins them layer by layer',
        )
    return PolicySpec(
        family,
        _vision_spec(shapes, where),
        language,
        expert,
        vocab=_shape(shapes, EMBEDDING, where)[0],
        horizon=horizon,
        action_dim=_shape(shapes, 'action_in_proj.weight', where)[1],
        max_tokens=max_tokens or (200 if family == 'pi05' else 48),
        steps=steps,
    )


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raise CheckpointError that lists what is missing, what is extra and what has another shape."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    misshaped = [
        f'{name} is {list(found[name])} instead of {list(shape)}'
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    report = [
        _listing(title, names)
        for title, names in (('missing', missing), ('extra', extra), ('misshaped', misshaped))
        if names
    ]
    if report:
        raise CheckpointError(
            '; '.join(report),
            where,
            'download or convert the checkpoint again; the file does not match its family',
        )


def _listing(title: str, entries: list[str], limit: int = 12) -> str:
    shown = ', '.join(entries[:limit]) + (f' and {len(entries) - limit} more' if len(entries) > limit else '')
    return f'{len(entries)} {title} tensor{"s" if len(entries) > 1 else ""}: {shown}'


def _linear(name: str, out: int, into: int) -> dict[str, Shape]:
    return {f'{name}.weight': (out, into), f'{name}.bias': (out,)}


def _layer_norm(name: str, width: int) -> dict[str, Shape]:
    return {f'{name}.weight': (width,), f'{name}.bias': (width,)}


def _vision(spec: VisionSpec) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {
        VISION + 'embeddings.patch_embedding.weight': (spec.width, 3, spec.patch, spec.patch),
        VISION + 'embeddings.patch_embedding.bias': (spec.width,),
        VISION + 'embeddings.position_embedding.weight': (spec.tokens, spec.width),
    }
    for i in range(spec.layers):
        layer = f'{VISION}encoder.layers.{i}.'
        for norm in ('layer_norm1', 'layer_norm2'):
            shapes.update(_layer_norm(layer + norm, spec.width))
        for projection in 'qkv':
            shapes.update(_linear(f'{layer}self_attn.{projection}_proj', spec.width, spec.width))
        shapes.update(_linear(f'{layer}self_attn.out_proj', spec.width, spec.width))
        shapes.update(_linear(f'{layer}mlp.fc1', spec.mlp, spec.width))
        shapes.update(_linear(f'{layer}mlp.fc2', spec.width, spec.mlp))
    return shapes | _layer_norm(VISION + 'post_layernorm', spec.width)


def _gemma(prefix: str, spec: GemmaSpec, ada_rms: bool) -> dict[str, Shape]:
    query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    def norm(name: str) -> dict[str, Shape]:
        if ada_rms:
            return _linear(name + '.dense', 3 * spec.width, spec.width)
        return {name + '.weight': (spec.width,)}

    shapes: dict[str, Shape] = {}
    for i in range(spec.layers):
        layer = f'{prefix}layers.{i}.'
        shapes.update(norm(layer + 'input_layernorm'))
        shapes[layer + 'self_attn.q_proj.weight'] = (query, spec.width)
        shapes[layer + 'self_attn.k_proj.weight'] = (key, spec.width)
        shapes[layer + 'self_attn.v_proj.weight'] = (key, spec.width)
        shapes[layer + 'self_attn.o_proj.weight'] = (spec.width, query)
        shapes.update(norm(layer + 'post_attention_layernorm'))
        shapes[layer + 'mlp.gate_proj.weight'] = (spec.mlp, spec.width)
        shapes[layer + 'mlp.up_proj.weight'] = (spec.mlp, spec.width)
        shapes[layer + 'mlp.down_proj.weight'] = (spec.width, spec.mlp)
    return shapes | norm(prefix + 'norm')


def _heads(spec: PolicySpec) -> dict[str, Shape]:
    width = spec.expert.width
    shapes = _linear('action_in_proj', width, spec.action_dim) | _linear(
        'action_out_proj', spec.action_dim, width
    )
    if spec.has_ada_rms:
        return shapes | _linear('time_mlp_in', width, width) | _linear('time_mlp_out', width, width)
    shapes |= _linear('state_proj', width, spec.action_dim)
    return (
        shapes
        | _linear('action_time_mlp_in', width, 2 * width)
        | _linear('action_time_mlp_out', width, width)
    )


def _require_pi(shapes: Mapping[str, Shape], where: str) -> None:
    parts = {
        'SigLIP vision tower': VISION,
        'Gemma language tower': LANGUAGE,
        'action expert': EXPERT,
        'action projection': 'action_in_proj.',
    }
    lacking = [part for part, prefix in parts.items() if not any(name.startswith(prefix) for name in shapes)]
    if lacking:
        raise CheckpointError(
            f'these are not the weights of a pi0 or pi0.5 policy: no {", no ".join(lacking)} among '
            f'{len(shapes)} tensors',
            where,
            'give the directory of a pi0 or pi0.5 checkpoint in openpi (PyTorch) or lerobot format',
        )


def _shape(shapes: Mapping[str, Shape], name: str, where: str, rank: int = 2) -> Shape:
    """Shape of a tensor that sizes are read from, so it is checked before all others."""
    if name not in shapes:
        raise CheckpointError(f'1 missing tensor: {name}', where, 'download or convert the checkpoint again')
    shape = shapes[name]
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(
            f'1 misshaped tensor: {name} is {list(shape)}', where, 'download or convert the checkpoint again'
        )
    return shape


def _layers(names: Iterable[str], prefix: str) -> int:
    """One more than the highest layer number; a gap shows up as missing tensors later."""
    numbers = [name[len(prefix) :].split('.')[0] for name in names if name.startswith(prefix)]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _majority(shapes: Mapping[str, Shape], layers: int, name: Callable[[int], str], where: str) -> Shape:
    """The matrix shape that most layers have."""
    present = (shapes[name(i)] for i in range(layers) if name(i) in shapes)
    votes = Counter(shape for shape in present if len(shape) == 2 and 0 not in shape)
    if not votes:
        raise CheckpointError(
            f'no layer has a usable {name(0)}', where, 'download or convert the checkpoint again'
        )
    return votes.most_common(1)[0][0]


def _heads_in(width: int, head_dim: int, what: str, where: str) -> int:
    if width % head_dim:
        raise CheckpointError(
            f'{what} of width {width} cannot be cut into heads of {head_dim}', where, 'use another checkpoint'
        )
    return width // head_dim


def _vision_spec(shapes: Mapping[str, Shape], where: str) -> VisionSpec:
    width, _, patch, _ = _shape(shapes, VISION + 'embeddings.patch_embedding.weight', where, rank=4)
    tokens = _shape(shapes, VISION + 'embeddings.position_embedding.weight', where)[0]
    encoder = VISION + 'encoder.layers.'
    layers = _layers(shapes, encoder)
    mlp = _majority(shapes, layers, lambda i: f'{encoder}{i}.mlp.fc1.weight', where)[0]
    return VisionSpec(
        layers,
        width,
        heads=_heads_in(width, SIGLIP_HEAD_DIM, 'a vision tower', where),
        mlp=mlp,
        patch=patch,
        image_size=math.isqrt(tokens) * patch,
    )


def _gemma_spec(shapes: Mapping[str, Shape], prefix: str, where: str) -> GemmaSpec:
    layers = _layers(shapes, prefix + 'layers.')

    def common(part: str) -> Shape:
        return _majority(shapes, layers, lambda i: f'{prefix}layers.{i}.{part}.weight', where)

    head_dim = common('self_attn.k_proj')[0]  # every pi tower has one K/V head
    query, width = common('self_attn.q_proj')
    return GemmaSpec(
        layers,
        width,
        mlp=common('mlp.gate_proj')[0],
        heads=_heads_in(query, head_dim, 'attention', where),
        head_dim=head_dim,
    )
