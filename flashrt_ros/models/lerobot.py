"""What a lerobot pi0 or pi0.5 directory says besides its weights.

    config.json                   family, views, widths, horizon, prompt length, flow steps
    model.safetensors
    policy_preprocessor.json      the steps that lerobot runs before the network, each with its settings
    policy_postprocessor.json     and after it
    *_(un)normalizer_processor.safetensors   their statistics, fp32

A step that is not known here could change what the network sees, so it is refused.

Source: lerobot 0.6.1 `policies/{pi0,pi05}` and `processor/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flashrt_ros.errors import CheckpointError
from flashrt_ros.models.jsonfile import finite_vector, positive, read_json, value
from flashrt_ros.models.normalize import Identity, MeanStd, Normalizer, Range
from flashrt_ros.models.pi import MAX_PERIOD, MIN_PERIOD
from flashrt_ros.models.processing import Processing
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import Shape, spec_from_shapes
from flashrt_ros.models.tokenizer import load_tokenizer
from flashrt_ros.policy import PolicyOptions

FAMILIES = ('pi0', 'pi05')
PREPROCESSOR, POSTPROCESSOR = 'policy_preprocessor.json', 'policy_postprocessor.json'
STATE, ACTION, IMAGES = 'observation.state', 'action', 'observation.images.'

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

STATISTICS: dict[str, tuple[Callable[[np.ndarray, np.ndarray, float], Normalizer], str, str]] = {
    'MEAN_STD': (MeanStd.lerobot, 'mean', 'std'),
    'MIN_MAX': (Range.lerobot, 'min', 'max'),
    'QUANTILES': (Range.lerobot, 'q01', 'q99'),
    'QUANTILE10': (Range.lerobot, 'q10', 'q90'),
}
"""Normalisation mode -> formula and the two statistics it needs."""

Step = dict[str, Any]


def read_spec(directory: Path, config: dict[str, Any], shapes: dict[str, Shape]) -> PolicySpec:
    path = directory / 'config.json'
    family = value(config, 'type', str, path)
    if family not in FAMILIES:
        raise CheckpointError(f"the policy is of type '{family}'", str(path), 'give a pi0 or pi05 checkpoint')
    for key, expected in (('min_period', MIN_PERIOD), ('max_period', MAX_PERIOD)):
        if config.get(key, expected) != expected:
            raise CheckpointError(f"'{key}' is {config[key]}", str(path), f'only {expected} is supported')
    spec = spec_from_shapes(
        shapes,
        str(directory / 'model.safetensors'),
        horizon=positive(config, 'chunk_size', path),
        max_tokens=positive(config, 'tokenizer_max_length', path),
        steps=positive(config, 'num_inference_steps', path),
    )
    if spec.family != family:
        raise CheckpointError(
            f"'type' says {family}, but the tensors are those of {spec.family}", str(path), 'correct the type'
        )
    return spec


def read_processing(
    directory: Path, config: dict[str, Any], spec: PolicySpec, options: PolicyOptions
) -> Processing:
    """Raises CheckpointError for missing or unknown processor steps, missing statistics, or no tokenizer."""
    path = directory / 'config.json'
    before, after = _steps(directory, PREPROCESSOR), _steps(directory, POSTPROCESSOR)
    state = _normalizer(directory, before, 'normalizer_processor', STATE, 'STATE')
    actions = _normalizer(directory, after, 'unnormalizer_processor', ACTION, 'ACTION')
    state_dim = _width(config, 'input_features', STATE, path)
    action_dim = _width(config, 'output_features', ACTION, path)
    return Processing(
        views=read_views(config, path),
        image_size=spec.vision.image_size,
        resize=options.resize or 'torch',
        state=state or Identity(state_dim),
        actions=actions or Identity(action_dim),
        state_dim=options.state_dim or state_dim,
        action_dim=options.action_dim or action_dim,
        padded_dim=spec.action_dim,
        prompt_form='lerobot_plain' if spec.has_state_token else options.prompt_form or 'state',
        max_tokens=spec.max_tokens,
        tokenizer=load_tokenizer(options.tokenizer, directory, spec.vocab),
        delta=options.delta_actions or _delta(before, after, action_dim, directory),
    )


def read_views(config: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Image names behind 'observation.images.', without the empty cameras, which are always masked."""
    features = value(config, 'input_features', dict, path)
    empty = {f'{IMAGES}empty_camera_{i}' for i in range(int(config.get('empty_cameras', 0)))}
    names = [
        name for name, feature in features.items() if feature.get('type') == 'VISUAL' and name not in empty
    ]
    if not names:
        raise CheckpointError(
            "there is no image among the 'input_features'", str(path), 'train with a camera'
        )
    return tuple(name.removeprefix(IMAGES) for name in names)


def _steps(directory: Path, name: str) -> dict[str, Step]:
    """Steps of a processor file by their registered name."""
    path = directory / name
    if not path.is_file():
        raise CheckpointError(
            f'there are no norm stats: {name} does not exist',
            str(directory),
            'copy it from the lerobot checkpoint; one saved by lerobot 0.3 or older needs '
            '`python -m lerobot.processor.migrate_policy_normalization` first',
        )
    listed = value(read_json(path), 'steps', list, path)
    steps = {step.get('registry_name', step.get('class', '?')): step for step in listed}
    unknown = steps.keys() - KNOWN_STEPS
    if unknown:
        raise CheckpointError(
            f'the processing steps {", ".join(sorted(unknown))} are not known',
            str(path),
            'use a checkpoint with the standard pi0 or pi0.5 processors',
        )
    return steps


def _normalizer(
    directory: Path, steps: dict[str, Step], name: str, feature: str, kind: str
) -> Normalizer | None:
    """Normaliser of one feature; None where the checkpoint says that it is not normalised."""
    step = value(steps, name, dict, directory)
    settings = value(step, 'config', dict, directory)
    mode = settings.get('norm_map', {}).get(kind, 'IDENTITY')
    if mode == 'IDENTITY':
        return None
    if mode not in STATISTICS:
        raise CheckpointError(
            f"the normalisation mode '{mode}' is not known",
            str(directory),
            f'use one of {", ".join(STATISTICS)}',
        )
    make, *keys = STATISTICS[mode]
    path = directory / value(step, 'state_file', str, directory)
    first, second = _statistics(path, [f'{feature}.{key}' for key in keys])
    return make(first, second, float(settings.get('eps', 1e-8)))


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
    return [finite_vector(stored[key], key, path) for key in keys]


def _width(config: dict[str, Any], group: str, feature: str, path: Path) -> int:
    """Width of the state or the action; lerobot fills in the padded width where a data set has none."""
    features = value(config, group, dict, path)
    shape = value(value(features, feature, dict, path), 'shape', list, path)
    if len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 1:
        raise CheckpointError(
            f"the shape of '{feature}' is {shape}", str(path), 'it has to be one positive number'
        )
    return shape[0]


def _delta(before: dict[str, Step], after: dict[str, Step], width: int, directory: Path) -> tuple[bool, ...]:
    """Which actions are relative to the state: all but those whose name contains an excluded joint's name."""
    if not after.get('absolute_actions_processor', {}).get('config', {}).get('enabled', False):
        return ()
    settings = value(value(before, 'relative_actions_processor', dict, directory), 'config', dict, directory)
    excluded = [str(name).lower() for name in settings.get('exclude_joints') or [] if name]
    names = settings.get('action_names')
    if names is None or not excluded:
        return (True,) * width
    relative = [not any(part in str(name).lower() for part in excluded) for name in names[:width]]
    return tuple(relative + [True] * (width - len(relative)))
