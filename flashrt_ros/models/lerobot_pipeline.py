"""The processor files of a lerobot policy: the steps before and after the network, and their statistics.

    {"steps": [{"registry_name": ..., "config": {...}, "state_file": ...}, ...]}

A step that is not known here could change what the network sees, so it is refused; so is one that is missing.

Source: lerobot 0.6.1 `processor/pipeline.py`, `normalize_processor.py`, `relative_action_processor.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flashrt_ros.errors import CheckpointError
from flashrt_ros.models.jsonfile import finite_vector, optional, read_json, strings, value
from flashrt_ros.models.normalize import MeanStd, Normalizer, Range

PREPROCESSOR, POSTPROCESSOR = 'policy_preprocessor.json', 'policy_postprocessor.json'

KNOWN_STEPS = {
    'rename_observations_processor',  # from a data set's names to the policy's, which are the ones used here
    'to_batch_processor',
    'device_processor',
    'pi0_new_line_processor',
    'pi05_prepare_state_tokenizer_processor_step',
    'tokenizer_processor',
    'relative_actions_processor',
    'normalizer_processor',
    'unnormalizer_processor',
    'absolute_actions_processor',
}

Formula = Callable[[np.ndarray, np.ndarray, float], Normalizer]

FORMULAS: dict[str, tuple[Formula, str, str]] = {
    'MEAN_STD': (MeanStd.lerobot, 'mean', 'std'),
    'MIN_MAX': (Range.lerobot, 'min', 'max'),
    'QUANTILES': (Range.lerobot, 'q01', 'q99'),
    'QUANTILE10': (Range.lerobot, 'q10', 'q90'),
}
"""Normalisation mode -> formula and the two statistics it needs."""


@dataclass(frozen=True)
class Pipeline:
    """One processor file. steps: registered name -> the step as it stands in the file."""

    path: Path
    steps: dict[str, dict[str, Any]]

    def settings(self, step: str) -> dict[str, Any]:
        """Settings of a step that has to be there."""
        return value(value(self.steps, step, dict, self.path), 'config', dict, self.path)

    def enabled(self, step: str) -> bool:
        return step in self.steps and optional(self.settings(step), 'enabled', bool, self.path, False)

    def normalizer(self, step: str, feature: str, kind: str) -> Normalizer | None:
        """Normaliser of one feature; None where the file says that its kind is not normalised."""
        settings = self.settings(step)
        mode = optional(value(settings, 'norm_map', dict, self.path), kind, str, self.path, 'IDENTITY')
        if mode == 'IDENTITY':
            return None
        if mode not in FORMULAS:
            raise CheckpointError(
                f"the normalisation mode '{mode}' is not known",
                str(self.path),
                f'use one of {", ".join(FORMULAS)}',
            )
        make, *keys = FORMULAS[mode]
        file = self.path.parent / value(self.steps[step], 'state_file', str, self.path)
        first, second = _statistics(file, [f'{feature}.{key}' for key in keys])
        return make(first, second, optional(settings, 'eps', float, self.path, 1e-8))


def read_pipeline(directory: Path, name: str) -> Pipeline:
    """Raises CheckpointError if the file is missing, or lists unknown steps or one of them twice."""
    path = directory / name
    if not path.is_file():
        raise CheckpointError(
            f'there are no norm stats: {name} does not exist',
            str(directory),
            'copy it from the lerobot checkpoint; one saved by lerobot 0.3 or older needs '
            '`python -m lerobot.processor.migrate_policy_normalization` first',
        )
    listed = value(read_json(path), 'steps', list, path)
    names = [str(step.get('registry_name')) if isinstance(step, dict) else repr(step) for step in listed]
    unknown = set(names) - KNOWN_STEPS
    if unknown:
        raise CheckpointError(
            f'the processing steps {", ".join(sorted(unknown))} are not known',
            str(path),
            'use a checkpoint with the standard pi0 or pi0.5 processors',
        )
    if len(set(names)) < len(names):
        raise CheckpointError('a processing step stands there twice', str(path), 'remove one of the two')
    return Pipeline(path, dict(zip(names, listed, strict=True)))


def relative_actions(before: Pipeline, after: Pipeline, width: int) -> tuple[bool, ...]:
    """Which actions are relative to the state: all but those whose name contains an excluded joint's name."""
    if not after.enabled('absolute_actions_processor'):
        return ()
    settings = before.settings('relative_actions_processor')
    excluded = [name.lower() for name in strings(settings, 'exclude_joints', before.path) if name]
    names = strings(settings, 'action_names', before.path)[:width]
    relative = [not any(part in name.lower() for part in excluded) for name in names]
    return tuple(relative + [True] * (width - len(relative)))


def _statistics(path: Path, keys: list[str]) -> list[np.ndarray]:
    try:
        stored = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            'there are no norm stats: the file does not exist',
            str(path),
            'copy it from the lerobot checkpoint',
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'the file cannot be read ({error})', str(path), 'download it again') from error
    for key in keys:
        if key not in stored:
            raise CheckpointError(
                f"there are no norm stats '{key}' (there are: {', '.join(sorted(stored))})",
                str(path),
                'compute the statistics of the data set again and save the policy with them',
            )
    vectors = [finite_vector(stored[key], key, path) for key in keys]
    if len(vectors[0]) != len(vectors[1]):
        raise CheckpointError(
            f"'{keys[0]}' has {len(vectors[0])} and '{keys[1]}' {len(vectors[1])} values",
            str(path),
            'compute the statistics of the data set again',
        )
    return vectors
