"""What a lerobot pi0 or pi0.5 directory says besides its weights.

    config.json                   family, views, widths, horizon, prompt length, flow steps
    model.safetensors
    policy_preprocessor.json      see `lerobot_pipeline`
    policy_postprocessor.json
    *_(un)normalizer_processor.safetensors   their statistics, fp32

Source: lerobot 0.6.1 `policies/{pi0,pi05}`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashrt_ros.errors import CheckpointError
from flashrt_ros.models.jsonfile import optional, positive, value
from flashrt_ros.models.lerobot_pipeline import POSTPROCESSOR, PREPROCESSOR, read_pipeline, relative_actions
from flashrt_ros.models.normalize import Identity
from flashrt_ros.models.pi import MAX_PERIOD, MIN_PERIOD
from flashrt_ros.models.processing import Processing
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import Shape, spec_from_shapes
from flashrt_ros.models.tokenizer import load_tokenizer
from flashrt_ros.policy import PolicyOptions

STATE, ACTION, IMAGES = 'observation.state', 'action', 'observation.images.'

PROMPT_STEP = {'pi0': 'pi0_new_line_processor', 'pi05': 'pi05_prepare_state_tokenizer_processor_step'}
"""Family -> the step that writes its prompt."""


def read_spec(directory: Path, config: dict[str, Any], shapes: dict[str, Shape]) -> PolicySpec:
    path = directory / 'config.json'
    family = value(config, 'type', str, path)
    if family not in PROMPT_STEP:
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
    before, after = read_pipeline(directory, PREPROCESSOR), read_pipeline(directory, POSTPROCESSOR)
    before.settings(PROMPT_STEP[spec.family])  # the prompt would be another without it
    state_dim = read_width(config, 'input_features', STATE, path)
    action_dim = read_width(config, 'output_features', ACTION, path)
    state = before.normalizer('normalizer_processor', STATE, 'STATE')
    actions = after.normalizer('unnormalizer_processor', ACTION, 'ACTION')
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
        delta=options.delta_actions or relative_actions(before, after, action_dim),
    )


def read_views(config: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Image names behind 'observation.images.', without the empty cameras, which are always masked."""
    features = value(config, 'input_features', dict, path)
    masked = {f'{IMAGES}empty_camera_{i}' for i in range(optional(config, 'empty_cameras', int, path, 0))}
    kinds = {name: value(value(features, name, dict, path), 'type', str, path) for name in features}
    names = [name for name, kind in kinds.items() if kind == 'VISUAL' and name not in masked]
    if not names:
        raise CheckpointError(
            "there is no image among the 'input_features'", str(path), 'train with a camera'
        )
    return tuple(name.removeprefix(IMAGES) for name in names)


def read_width(config: dict[str, Any], group: str, feature: str, path: Path) -> int:
    """Width of the state or the action; lerobot fills in the padded width where a data set has none."""
    shape = value(value(value(config, group, dict, path), feature, dict, path), 'shape', list, path)
    if len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 1:
        raise CheckpointError(
            f"the shape of '{feature}' is {shape}", str(path), 'it has to be one positive number'
        )
    return shape[0]
