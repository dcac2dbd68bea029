"""Weights rewritten once into the form the engine multiplies by: folded, concatenated, quantised.

A packed checkpoint is a flat dict of CPU tensors. A product called NAME has `NAME.weight` [out, in] in
bf16, E4M3 or int8 (`formats`), `NAME.channel_scale` fp32 [out] unless it is bf16 (real weight = stored *
scale), and `NAME.bias` fp32 [out] where there is one. Everything that multiplies the input of a product
channel by channel is folded into it in fp32 first: Gemma's (1 + w), SigLIP's LayerNorm weight and (through
the product) its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from flashrt_ros.engine.weights.formats import BF16, product_dtype, quantise_rows
from flashrt_ros.models.spec import GemmaSpec, PolicySpec, VisionSpec
from flashrt_ros.models.tensors import EMBEDDING, EXPERT, LANGUAGE, PROJECTOR, VISION

PATCH_COLUMNS_MULTIPLE = 16
"""The patch embedding's 588 columns are padded with zeros to 592, so that every row starts at 16 bytes."""

Packed = dict[str, Tensor]

PRECISIONS = ('bf16', 'fp8')

"""What a user chooses from; the towers then have a format each (`formats.tower_format`)."""


def pack_vision(
    tensors: Mapping[str, Tensor], spec: PolicySpec, precision: str, uneven: frozenset[str] = frozenset()
) -> Packed:
    """Vision tower and projector. `tensors` are canonical (`models.tensors`), of any float dtype.

    precision, of each tower: 'bf16', 'fp8' or 'int8'; uneven: products that are E4M3 in 'int8' all the same.
    """
    packed = _pack_all(_vision(tensors, spec.vision), precision, uneven)
    return packed | _patch_embedding(tensors, spec.vision)


def pack_language(
    tensors: Mapping[str, Tensor], spec: PolicySpec, precision: str, uneven: frozenset[str] = frozenset()
) -> Packed:
    """Language tower and token embedding."""
    packed = _pack_all(_language(tensors, spec.language), precision, uneven)
    return packed | {'language.embedding': tensors[EMBEDDING].to(torch.bfloat16)}


def pack_expert(tensors: Mapping[str, Tensor], spec: PolicySpec, precision: str) -> Packed:
    """The action expert's layers in the same form; pi0's norms are folded, pi0.5's are modulated at run
    time."""
    layers = _gemma(tensors, EXPERT, 'expert', spec.expert, folded=not spec.has_ada_rms)
    return _pack_all(layers, precision)


def patch_columns(spec: VisionSpec) -> int:
    """Columns of the patch embedding with padding."""
    return -(-3 * spec.patch**2 // PATCH_COLUMNS_MULTIPLE) * PATCH_COLUMNS_MULTIPLE


def pack_product(
    name: str, weight: Tensor, bias: Tensor | None, precision: str, uneven: frozenset[str] = frozenset()
) -> Packed:
    """One product, in the dtype that its name has in a tower of this precision."""
    packed: Packed = {} if bias is None else {f'{name}.bias': bias.float().contiguous()}
    dtype = product_dtype(name, precision, uneven)
    quantised, scale = quantise_rows(weight, dtype)
    packed[f'{name}.weight'] = quantised
    return packed if dtype == BF16 else packed | {f'{name}.channel_scale': scale}


Product = tuple[str, Tensor, Tensor | None]


def _pack_all(products: Iterator[Product], precision: str, uneven: frozenset[str] = frozenset()) -> Packed:
    packed: Packed = {}
    for name, weight, bias in products:
        packed.update(pack_product(name, weight, bias, precision, uneven))
    return packed


def _vision(tensors: Mapping[str, Tensor], spec: VisionSpec) -> Iterator[Product]:
    get = _reader(tensors, VISION)
    for i in range(spec.layers):
        layer = f'encoder.layers.{i}.'
        attention = layer + 'self_attn.'
        weight = torch.cat([get(f'{attention}{c}_proj.weight') for c in 'qkv'])
        bias = torch.cat([get(f'{attention}{c}_proj.bias') for c in 'qkv'])
        yield f'vision.{i}.qkv', *_fold_layer_norm(weight, bias, get, layer + 'layer_norm1')
        yield f'vision.{i}.o', get(attention + 'out_proj.weight'), get(attention + 'out_proj.bias')
        weight, bias = get(layer + 'mlp.fc1.weight'), get(layer + 'mlp.fc1.bias')
        yield f'vision.{i}.up', *_fold_layer_norm(weight, bias, get, layer + 'layer_norm2')
        yield f'vision.{i}.down', get(layer + 'mlp.fc2.weight'), get(layer + 'mlp.fc2.bias')
    projector = _reader(tensors, PROJECTOR)
    weight, bias = projector('linear.weight'), projector('linear.bias')
    yield 'vision.projector', *_fold_layer_norm(weight, bias, get, 'post_layernorm')


def _language(tensors: Mapping[str, Tensor], spec: GemmaSpec) -> Iterator[Product]:
    """All layers but the last, of which only keys and values are ever used."""
    last = spec.layers - 1
    yield from _gemma(tensors, LANGUAGE, 'language', spec, folded=True, layers=last)
    get = _reader(tensors, f'{LANGUAGE}layers.{last}.')
    weight = torch.cat([get('self_attn.k_proj.weight'), get('self_attn.v_proj.weight')])
    yield f'language.{last}.kv', weight * (1 + get('input_layernorm.weight')), None


def _gemma(
    tensors: Mapping[str, Tensor],
    prefix: str,
    name: str,
    spec: GemmaSpec,
    folded: bool,
    layers: int | None = None,
) -> Iterator[Product]:
    for i in range(spec.layers if layers is None else layers):
        get = _reader(tensors, f'{prefix}layers.{i}.')
        qkv = torch.cat([get(f'self_attn.{c}_proj.weight') for c in 'qkv'])
        gate_up = torch.cat([get('mlp.gate_proj.weight'), get('mlp.up_proj.weight')])
        if folded:
            qkv = qkv * (1 + get('input_layernorm.weight'))
            gate_up = gate_up * (1 + get('post_attention_layernorm.weight'))
        yield f'{name}.{i}.qkv', qkv, None
        yield f'{name}.{i}.o', get('self_attn.o_proj.weight'), None
        yield f'{name}.{i}.gate_up', gate_up, None
        yield f'{name}.{i}.down', get('mlp.down_proj.weight'), None


def _patch_embedding(tensors: Mapping[str, Tensor], spec: VisionSpec) -> Packed:
    """The convolution as a product on integer pixels (2 * byte - 255), and what every image starts from."""
    get = _reader(tensors, VISION + 'embeddings.')
    flat = get('patch_embedding.weight').flatten(1) / 255
    padding = patch_columns(spec) - flat.shape[1]
    start = get('position_embedding.weight') + get('patch_embedding.bias')
    weight = torch.nn.functional.pad(flat, (0, padding)).to(torch.bfloat16).contiguous()
    return {'vision.patch.weight': weight, 'vision.start': start.contiguous()}


def _fold_layer_norm(
    weight: Tensor, bias: Tensor, get: Callable[[str], Tensor], norm: str
) -> tuple[Tensor, Tensor]:
    """W (n * w + b) + c = (W w) n + (W b + c), with n the normalised row."""
    return weight * get(norm + '.weight'), bias + weight @ get(norm + '.bias')


def _reader(tensors: Mapping[str, Tensor], prefix: str) -> Callable[[str], Tensor]:
    return lambda name: tensors[prefix + name].float()
