"""A safetensors file as a mapping from canonical names to tensors, read one at a time.

Three layouts are understood and lead to the same names (`tensors`): openpi's, lerobot's (the same behind
`model.`) and that of lerobot up to 0.3 (no `model.` level inside PaliGemma). Every tensor is checked for NaN
and Inf as it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flashrt_ros.errors import CheckpointError
from flashrt_ros.models.tensors import EMBEDDING, EXPERT_LM_HEAD, LM_HEAD, Shape

DTYPES = ('F32', 'BF16', 'F16')

OLD_LAYOUT = (
    (re.compile(r'^paligemma_with_expert\.paligemma\.language_model\.model\.'), 'language_model.'),
    (re.compile(r'^paligemma_with_expert\.paligemma\.language_model\.lm_head\.'), None),
    (re.compile(r'^paligemma_with_expert\.paligemma\.vision_tower\.'), 'vision_tower.'),
    (re.compile(r'^paligemma_with_expert\.paligemma\.multi_modal_projector\.'), 'multi_modal_projector.'),
)
"""Prefixes of lerobot up to 0.3 and the part of PaliGemma they stand for; None is lm_head."""

OLD_STATISTICS = re.compile(r'^(un)?normalize_(inputs|outputs|targets)\.buffer_')
"""Statistics inside the weights, as lerobot stored them up to 0.3. Processor files replace them."""


class TensorFile(Mapping[str, Tensor]):
    """Canonical name -> tensor on the CPU, as stored; reading raises CheckpointError for NaN or Inf.

    shapes: canonical name -> shape, without touching the data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        stored = list(self._file.keys())
        self._stored = _canonical(name for name in stored if not OLD_STATISTICS.match(name))
        self.shapes: dict[str, Shape] = {}
        for name, original in self._stored.items():
            header = self._file.get_slice(original)
            _check_dtype(header.get_dtype(), name, path)
            self.shapes[name] = tuple(header.get_shape())

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._file.get_tensor(self._stored[name])
        low, high = torch.aminmax(tensor)  # one pass; NaN propagates into both
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise CheckpointError(
                f'{name} holds NaN or Inf',
                str(self.path),
                'use another checkpoint; the training of this one diverged',
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def canonical_name(stored: str) -> str:
    """Name in a file -> canonical name, except that lm_head keeps its own; see `_canonical`."""
    name = stored.removeprefix('model.')
    for pattern, part in OLD_LAYOUT:
        if pattern.match(name):
            return pattern.sub('paligemma_with_expert.paligemma.model.' + part, name) if part else LM_HEAD
    return name


def _canonical(stored: Iterator[str]) -> dict[str, str]:
    """Canonical name -> name in the file. The embedding is embed_tokens, else the lm_head tied to it."""
    names = {canonical_name(name): name for name in stored}
    names.pop(EXPERT_LM_HEAD, None)
    lm_head = names.pop(LM_HEAD, None)
    if lm_head is not None:
        names.setdefault(EMBEDDING, lm_head)
    return names


def _check_dtype(dtype: str, name: str, path: Path) -> None:
    if dtype not in DTYPES:
        raise CheckpointError(
            f'{name} is stored as {dtype}',
            str(path),
            'use a checkpoint in fp32, bf16 or fp16; quantised files cannot be read',
        )


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise CheckpointError(
            'the file does not exist',
            str(path),
            'give the directory that holds config.json and model.safetensors',
        )
    try:
        return safe_open(path, framework='pt')
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f'the file is truncated or no safetensors file ({error})',
            str(path),
            'download the checkpoint again',
        ) from error
