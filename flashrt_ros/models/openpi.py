"""What an openpi PyTorch checkpoint says besides its weights, and the conventions that it takes for granted.

    config.json                            sizes and precision; neither the family nor the prompt form
    model.safetensors
    assets/<asset_id>/norm_stats.json      mean, std, q01, q99 of state and actions

The family is read from the tensors. Whether actions are relative to the state is written nowhere: the user
says it.

Source: openpi `training/checkpoints.py`, `shared/normalize.py`, `models/model.py`, `policies/` at 15a9616.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashrt_ros.errors import CheckpointError
from flashrt_ros.models.jsonfile import positive, read_json, value, vector
from flashrt_ros.models.normalize import MeanStd, Normalizer, Range
from flashrt_ros.models.processing import Processing
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import Shape, spec_from_shapes
from flashrt_ros.models.tokenizer import load_tokenizer
from flashrt_ros.policy import PolicyOptions

VIEWS = ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')

STEPS = 10
"""Flow steps of openpi's `sample_actions`; no file states them."""


def read_spec(directory: Path, config: dict[str, Any], shapes: dict[str, Shape]) -> PolicySpec:
    horizon = positive(config, 'action_horizon', directory / 'config.json')
    return spec_from_shapes(shapes, str(directory / 'model.safetensors'), horizon, steps=STEPS)


def read_processing(
    directory: Path, config: dict[str, Any], spec: PolicySpec, options: PolicyOptions
) -> Processing:
    """Raises CheckpointError without statistics or tokenizer, or where the options contradict them."""
    path = find_statistics(directory, options.asset_id)
    statistics = value(read_json(path), 'norm_stats', dict, path)
    state = _normalizer(value(statistics, 'state', dict, path), spec, path)
    actions = _normalizer(value(statistics, 'actions', dict, path), spec, path)
    return Processing(
        views=VIEWS,
        image_size=spec.vision.image_size,
        resize=options.resize or 'pil',
        state=state,
        actions=actions,
        state_dim=options.state_dim or _robot_width(state, spec),
        action_dim=options.action_dim or _robot_width(actions, spec),
        padded_dim=spec.action_dim,
        prompt_form=options.prompt_form or ('plain' if spec.has_state_token else 'state'),
        max_tokens=spec.max_tokens,
        tokenizer=load_tokenizer(options.tokenizer, directory, spec.vocab),
        delta=options.delta_actions or (),
    )


def find_statistics(directory: Path, asset_id: str | None) -> Path:
    """The asset's norm_stats.json, or the only one. Raises CheckpointError that names what was searched."""
    assets = directory / 'assets'
    found = {
        path.parent.relative_to(assets).as_posix(): path for path in sorted(assets.rglob('norm_stats.json'))
    }
    if asset_id is not None and asset_id in found:
        return found[asset_id]
    if asset_id is None and len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise CheckpointError(
            f'there are no norm stats: searched {assets}/<asset_id>/norm_stats.json',
            str(directory),
            'copy the assets folder of the openpi checkpoint, which the conversion to PyTorch leaves out',
        )
    wanted = 'several norm stats' if asset_id is None else f"no norm stats of asset '{asset_id}'"
    raise CheckpointError(
        f'there are {wanted}: {", ".join(found)}',
        str(assets),
        "choose one of them with the option 'asset_id'",
    )


def _normalizer(statistics: dict[str, Any], spec: PolicySpec, path: Path) -> Normalizer:
    """openpi normalises pi0 by mean and deviation, and every later family by quantiles."""
    keys = ('mean', 'std') if spec.family == 'pi0' else ('q01', 'q99')
    first, second = (vector(statistics, key, path) for key in keys)
    if len(first) != len(second):
        raise CheckpointError(
            f"'{keys[0]}' has {len(first)} and '{keys[1]}' {len(second)} values",
            str(path),
            'use the statistics that belong to this checkpoint',
        )
    if spec.family == 'pi0':
        return MeanStd.openpi(first, second)
    return Range.openpi(first, second)


def _robot_width(statistics: Normalizer, spec: PolicySpec) -> int:
    """Statistics as wide as the padding say nothing about the robot: 0."""
    return statistics.width if statistics.width < spec.action_dim else 0
