"""Packed weights of a checkpoint: made once on the GPU, kept on disk under the checkpoint's fingerprint."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashrt_ros.engine.cuda.compiler import cache_directory
from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.expert.back import pack_layers
from flashrt_ros.engine.expert.denoise import covers, pack_fused
from flashrt_ros.engine.expert.exact import BACK
from flashrt_ros.engine.expert.exact import PREFIX as EXACT
from flashrt_ros.engine.operators.wide_gemm import covers as covers_prefill
from flashrt_ros.engine.towers.flow import pack_flow
from flashrt_ros.engine.weights.formats import TOWERS, tower_format
from flashrt_ros.engine.weights.packing import Packed, pack_expert, pack_language, pack_vision
from flashrt_ros.engine.weights.wide_layout import pack_wide_language
from flashrt_ros.models.spec import PolicySpec

FORMAT = 5
"""Raise it when packing changes, so that caches of an older version are not read."""

SAMPLE = 4096
"""Bytes of each tensor that enter the fingerprint, from its start and from its end."""


def pack(
    tensors: Mapping[str, Tensor],
    spec: PolicySpec,
    precision: str,
    fused: bool = False,
    wide: bool = False,
    uneven: frozenset[str] = frozenset(),
) -> Packed:
    """Everything the engine needs, packed on whatever device the tensors come on.

    fused: for the fused denoise loop (`expert.denoise.covers` says where) instead of the plain one.
    wide: for the prefill's own products (`wide_gemm.covers` says where) instead of the library's.
    Where both are, there are kernels for integers of 8 bits (`formats.tower_format`);
    uneven: products that get none.
    """
    vision, language, expert = (
        tower_format(spec, precision, tower, fused and wide, uneven) for tower in TOWERS
    )
    pack_loop = pack_fused if fused else pack_expert
    pack_prefill = pack_wide_language if wide else pack_language
    with torch.inference_mode():
        return {
            **pack_vision(tensors, spec, vision, uneven),
            **pack_prefill(tensors, spec, language, uneven),
            **pack_loop(tensors, spec, expert),
            **pack_flow(tensors, spec),
        }


def fingerprint(model: Path) -> str:
    """Identifies a safetensors file without reading all of it: header, size, and both ends of every tensor.

    Any training run changes every tensor, so different weights differ here; single flipped bits may not.
    """
    digest = hashlib.sha256(str(model.stat().st_size).encode())
    with model.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = file.read(length)
        digest.update(header)
        for name, entry in sorted(json.loads(header).items()):
            if name != '__metadata__':
                begin, end = entry['data_offsets']
                for start in {begin, max(begin, end - SAMPLE)}:
                    file.seek(8 + length + start)
                    digest.update(file.read(min(SAMPLE, end - start)))
    return digest.hexdigest()[:32]


def load_packed(
    key: str,
    spec: PolicySpec,
    precision: str,
    views: int,
    gpu: Gpu,
    tensors: Callable[[], Mapping[str, Tensor]],
    cache: Path | None = None,
    uneven: frozenset[str] = frozenset(),
) -> Packed:
    """From the cache, straight to the device; otherwise pack and fill the cache.

    key: the checkpoint's fingerprint. tensors: gives the canonical tensors, called only when they must be
    packed. uneven: products of which `formats.uneven_products` says so.
    """
    fused, wide = covers(gpu, spec), covers_prefill(gpu, spec, precision, views)
    return _cached(
        packed_path(key, spec, precision, views, gpu, cache, uneven),
        gpu,
        lambda: pack(OnDevice(tensors(), gpu.device), spec, precision, fused, wide, uneven),
    )


def load_exact(
    key: str,
    spec: PolicySpec,
    form: str,
    gpu: Gpu,
    tensors: Callable[[], Mapping[str, Tensor]],
    cache: Path | None = None,
) -> Packed:
    """What `expert.exact` needs beside other weights, as `load_packed`: the action expert for its way back.

    form: what `exact.back_format` says.
    """
    fused = covers(gpu, spec)
    kind = f'{"fused" if fused else "plain"}{"" if form == "bf16" else f"-{form}"}'
    path = (cache or cache_directory()) / 'weights' / f'{key}-exact-{kind}-{FORMAT}.safetensors'
    return _cached(path, gpu, lambda: pack_exact(OnDevice(tensors(), gpu.device), spec, fused, form))


def pack_exact(
    tensors: Mapping[str, Tensor], spec: PolicySpec, fused: bool = False, form: str = 'bf16'
) -> Packed:
    """The products under names of their own: those of `expert.back` behind the fused loop, in 'bf16' or
    'fp8', or the plain loop's in bf16."""
    with torch.inference_mode():
        if fused:
            layers = pack_layers(tensors, spec.expert.layers, form)
            return {f'{BACK}{name}': value for name, value in layers.items()}
        return {f'{EXACT}{name}': value for name, value in pack_expert(tensors, spec, 'bf16').items()}


def shares_exact(gpu: Gpu, spec: PolicySpec, precision: str) -> bool:
    """Whether the weights of the denoise loop are those of the exact one, too."""
    return not covers(gpu, spec) and tower_format(spec, precision, 'expert', False) == 'bf16'


def _cached(path: Path, gpu: Gpu, make: Callable[[], Packed]) -> Packed:
    if path.exists():
        try:
            return load_file(path, device=str(gpu.device))
        except SafetensorError:  # cut short by a full disk or a crash: it can be made again
            path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = make()
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        written = Path(temporary) / path.name
        save_file(packed, written)
        written.replace(path)
    return packed


def packed_path(
    key: str,
    spec: PolicySpec,
    precision: str,
    views: int,
    gpu: Gpu,
    cache: Path | None = None,
    uneven: frozenset[str] = frozenset(),
) -> Path:
    """Where `load_packed` keeps them, whether they are there or not."""
    fused, wide = covers(gpu, spec), covers_prefill(gpu, spec, precision, views)
    form = f'{"fused" if fused else "plain"}{"-wide" if wide else ""}'
    if uneven and spec.family == 'pi0':
        form += '-' + hashlib.sha256(' '.join(sorted(uneven)).encode()).hexdigest()[:8]
    name = f'{key}-{precision}-{form}-{spec.steps}-{FORMAT}.safetensors'
    return (cache or cache_directory()) / 'weights' / name


class OnDevice(Mapping[str, Tensor]):
    """Tensors moved to a device one at a time, as they are asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._tensors, self._device = tensors, device

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
