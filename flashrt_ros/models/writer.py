"""Writing a checkpoint directory in openpi's or lerobot's format, from tensors and statistics.

The weights are streamed one tensor at a time, so that any size fits in memory. The files are the ones that
`checkpoint` reads; both formats store the embedding once, as lm_head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from flashrt_ros.models import lerobot
from flashrt_ros.models.lerobot_pipeline import POSTPROCESSOR, PREPROCESSOR
from flashrt_ros.models.small_tokenizer import write_small_tokenizer
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import EMBEDDING, LM_HEAD, expected_tensors

FORMATS = ('openpi', 'lerobot')
DTYPE_NAMES = {torch.float32: 'F32', torch.bfloat16: 'BF16', torch.float16: 'F16'}
ASSET_ID = 'robot'
LEROBOT_VIEWS = ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')


@dataclass(frozen=True)
class Statistics:
    """Statistics of a data set's states or actions, float64 [D] each."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray

    @classmethod
    def of(cls, samples: np.ndarray) -> Statistics:
        """samples: [N, D]."""
        low, high = np.quantile(samples, (0.01, 0.99), axis=0)
        return cls(samples.mean(0), samples.std(0), samples.min(0), samples.max(0), low, high)

    @property
    def width(self) -> int:
        return len(self.mean)


def write_checkpoint(
    path: Path,
    spec: PolicySpec,
    tensors: Mapping[str, Tensor],
    state: Statistics,
    actions: Statistics,
    format: str = 'openpi',
    dtype: torch.dtype = torch.float32,
    views: tuple[str, ...] | None = None,
    trained_prefix: int = 0,
) -> Path:
    """Write config, weights, statistics and a small tokenizer into the directory `path`, and return it.

    tensors: canonical name -> tensor, of the shapes of `expected_tensors(spec)`. format: one of `FORMATS`.
    views: lerobot's image names without 'observation.images.'. trained_prefix: see `Checkpoint`.
    Replace tokenizer.json for weights that were trained with PaliGemma's vocabulary.
    """
    if format not in FORMATS:
        raise ValueError(f"'{format}' is no checkpoint format, choose one of {', '.join(FORMATS)}")
    path.mkdir(parents=True, exist_ok=True)
    prefix = 'model.' if format == 'lerobot' else ''
    stored = {prefix + (LM_HEAD if name == EMBEDDING else name): name for name in expected_tensors(spec)}
    stream_tensors(path / 'model.safetensors', stored, tensors, expected_tensors(spec), dtype)
    write_small_tokenizer(path / 'tokenizer.json')
    if format == 'openpi':
        _write_openpi(path, spec, dtype, state, actions)
    else:
        _write_lerobot(path, spec, dtype, state, actions, views or LEROBOT_VIEWS)
    if trained_prefix:
        config = json.loads((path / 'config.json').read_text(encoding='utf-8'))
        _write_json(path / 'config.json', config | {'rtc_training_max_delay': trained_prefix})
    return path


def stream_tensors(
    path: Path,
    stored: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
) -> None:
    """Write a safetensors file one tensor at a time: u64 header length, JSON header, data.

    stored: name in the file -> name in `tensors` and `shapes`. Format: safetensors README, "Format".
    """
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    end = 0
    for name, source in stored.items():
        begin, end = end, end + math.prod(shapes[source]) * dtype.itemsize
        header[name] = {
            'dtype': DTYPE_NAMES[dtype],
            'shape': list(shapes[source]),
            'data_offsets': [begin, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b' ' * (-len(encoded) % 8)
    with path.open('wb') as file:
        file.write(len(encoded).to_bytes(8, 'little') + encoded)
        for source in stored.values():
            tensor = tensors[source].to('cpu', dtype).contiguous()
            if tuple(tensor.shape) != tuple(shapes[source]):
                raise ValueError(f'{source} is {list(tensor.shape)} instead of {list(shapes[source])}')
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)


def _write_openpi(
    path: Path, spec: PolicySpec, dtype: torch.dtype, state: Statistics, actions: Statistics
) -> None:
    config = {
        'action_dim': spec.action_dim,
        'action_horizon': spec.horizon,
        'paligemma_variant': 'gemma_2b',
        'action_expert_variant': 'gemma_300m',
        'precision': 'bfloat16' if dtype == torch.bfloat16 else 'float32',
    }
    _write_json(path / 'config.json', config)
    keys = ('mean', 'std', 'q01', 'q99')
    statistics = {
        group: {key: getattr(values, key).tolist() for key in keys}
        for group, values in (('state', state), ('actions', actions))
    }
    _write_json(path / 'assets' / ASSET_ID / 'norm_stats.json', {'norm_stats': statistics})


def _write_lerobot(
    path: Path,
    spec: PolicySpec,
    dtype: torch.dtype,
    state: Statistics,
    actions: Statistics,
    views: tuple[str, ...],
) -> None:
    mode = 'MEAN_STD' if spec.family == 'pi0' else 'QUANTILES'
    norm_map = {'VISUAL': 'IDENTITY', 'STATE': mode, 'ACTION': mode}
    size = spec.vision.image_size
    inputs = {lerobot.IMAGES + view: {'type': 'VISUAL', 'shape': [3, size, size]} for view in views}
    inputs[lerobot.STATE] = {'type': 'STATE', 'shape': [state.width]}
    outputs = {lerobot.ACTION: {'type': 'ACTION', 'shape': [actions.width]}}
    config = {
        'type': spec.family,
        'n_obs_steps': 1,
        'input_features': inputs,
        'output_features': outputs,
        'device': 'cpu',
        'paligemma_variant': 'gemma_2b',
        'action_expert_variant': 'gemma_300m',
        'dtype': 'bfloat16' if dtype == torch.bfloat16 else 'float32',
        'chunk_size': spec.horizon,
        'n_action_steps': spec.horizon,
        'max_state_dim': spec.action_dim,
        'max_action_dim': spec.action_dim,
        'num_inference_steps': spec.steps,
        'min_period': 0.004,
        'max_period': 4.0,
        'use_relative_actions': False,
        'image_resolution': [size, size],
        'empty_cameras': 0,
        'tokenizer_max_length': spec.max_tokens,
        'normalization_mapping': norm_map,
    }
    _write_json(path / 'config.json', config)
    _write_processors(path, spec, inputs, outputs, norm_map)
    statistics = {
        f'{feature}.{key}': value.astype(np.float32)
        for feature, values in ((lerobot.STATE, state), (lerobot.ACTION, actions))
        for key, value in asdict(values).items()
    }
    index = 6 if spec.has_state_token else 3
    save_file(statistics, path / f'policy_preprocessor_step_{index}_normalizer_processor.safetensors')
    save_file(statistics, path / 'policy_postprocessor_step_0_unnormalizer_processor.safetensors')


def _write_processors(
    path: Path, spec: PolicySpec, inputs: dict[str, Any], outputs: dict[str, Any], norm_map: dict[str, str]
) -> None:
    """The two processor files, lerobot's steps in lerobot's order: pi0 tokenises before it normalises."""

    def step(name: str, **config: Any) -> dict[str, Any]:
        return {'registry_name': name, 'config': config}

    def normalizer(name: str, features: dict[str, Any], state_file: str) -> dict[str, Any]:
        described = step(name, eps=1e-8, features=features, norm_map=norm_map)
        return described | {'state_file': state_file}

    tokenize = step(
        'tokenizer_processor',
        max_length=spec.max_tokens,
        task_key='task',
        padding_side='right',
        padding='max_length',
        truncation=True,
    )
    device = step('device_processor', device='cpu', float_dtype=None)
    relative = step(
        'relative_actions_processor', enabled=False, exclude_joints=['gripper'], action_names=None
    )
    index = 6 if spec.has_state_token else 3
    normalize = normalizer(
        'normalizer_processor',
        inputs | outputs,
        f'policy_preprocessor_step_{index}_normalizer_processor.safetensors',
    )
    first = [step('rename_observations_processor', rename_map={}), step('to_batch_processor')]
    if spec.has_state_token:
        before = [*first, step('pi0_new_line_processor'), tokenize, device, relative, normalize]
    else:
        prepare = step('pi05_prepare_state_tokenizer_processor_step')
        before = [*first, relative, normalize, prepare, tokenize, device]
    restore = normalizer(
        'unnormalizer_processor', outputs, 'policy_postprocessor_step_0_unnormalizer_processor.safetensors'
    )
    after = [restore, step('absolute_actions_processor', enabled=False), device]
    _write_json(path / PREPROCESSOR, {'name': 'policy_preprocessor', 'steps': before})
    _write_json(path / POSTPROCESSOR, {'name': 'policy_postprocessor', 'steps': after})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
