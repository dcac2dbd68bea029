"""Random weights of any size, the same on every device, and whole random checkpoints on disk.

    random_tensors(spec, seed, dtype, device)     canonical name -> tensor, made when asked for
    write_random_checkpoint(path, spec, format=)  a directory that `open_checkpoint` reads

For tests, the demo and benchmarks: latency does not depend on the values, and the format is the real one.
Norms, modulations and biases get values that matter, because freshly built ones (zero or one) hide a wrong
order or a missing term.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import EMBEDDING, Shape, expected_tensors
from flashrt_ros.models.writer import Statistics, write_checkpoint

TABLE_LENGTH = (1 << 22) + 15
"""Length of the table that all values are cut from. Odd, so that rows of a matrix never repeat in step."""


class RandomTensors(Mapping[str, Tensor]):
    """Canonical name -> tensor. A tensor depends on seed and name only, and takes as long as copying it.

    Values are cut from one table of normal numbers, at a place that the name decides, and scaled so that
    activations stay near one through all layers.
    """

    def __init__(self, spec: PolicySpec, seed: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.shapes = expected_tensors(spec)
        self._seed, self._dtype = seed, dtype
        generator = torch.Generator().manual_seed(seed)
        self._table = torch.randn(TABLE_LENGTH, generator=generator).to(device)

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        centre, spread = _centre_and_spread(name, shape)
        count = math.prod(shape)
        start = zlib.crc32(f'{self._seed} {name}'.encode()) % TABLE_LENGTH
        normal = torch.cat([self._table[start : start + count], self._table[:start]])[:count]
        values = (normal * spread + centre).to(self._dtype)
        return values.repeat(-(-count // len(values)))[:count].view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def random_tensors(
    spec: PolicySpec,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = 'cpu',
) -> RandomTensors:
    """Weights of a policy of this size, as `Checkpoint.tensors` gives them, directly on a device."""
    return RandomTensors(spec, seed, dtype, device)


def write_random_checkpoint(
    path: Path | str,
    spec: PolicySpec,
    format: str = 'openpi',
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    state_dim: int = 6,
    action_dim: int = 6,
    views: tuple[str, ...] | None = None,
) -> Path:
    """Write a complete checkpoint directory with random weights, random statistics and a small tokenizer.

    views: lerobot's image names; openpi's are fixed. The weights are streamed: memory stays under 3 GiB at
    full size.
    """
    rng = np.random.default_rng(seed)
    return write_checkpoint(
        Path(path),
        spec,
        random_tensors(spec, seed, dtype),
        random_statistics(rng, state_dim),
        random_statistics(rng, action_dim),
        format=format,
        dtype=dtype,
        views=views,
    )


def random_statistics(rng: np.random.Generator, width: int) -> Statistics:
    """Statistics of random samples [1000, width] whose columns differ in centre and spread."""
    return Statistics.of(rng.normal(rng.normal(0, 0.3, width), rng.uniform(0.3, 1.0, width), (1000, width)))


def _centre_and_spread(name: str, shape: Shape) -> tuple[float, float]:
    """Mean and deviation of a tensor's values: matrices keep the scale of what they multiply."""
    if '.dense.' in name:  # modulations of about 0.3 on scale, shift and gate
        return 0.0, 0.1 if name.endswith('bias') else 0.6 / shape[-1] ** 0.5
    if 'norm' in name:
        layer_norm_weight = name.endswith('weight') and ('layer_norm' in name or 'post_layernorm' in name)
        return (1.0 if layer_norm_weight else 0.0), 0.1
    if name.endswith('bias') or 'position_embedding' in name:
        return 0.0, 0.1
    if name == EMBEDDING:
        return 0.0, shape[1] ** -0.5
    return 0.0, float(np.prod(shape[1:])) ** -0.5
