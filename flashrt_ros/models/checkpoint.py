"""A checkpoint directory, openpi's or lerobot's, as one object.

    checkpoint = open_checkpoint(path, options)
    checkpoint.spec         PolicySpec: family and sizes
    checkpoint.tensors      canonical name -> tensor, read when asked for (see `tensors` for the names)
    checkpoint.processing   Processing: tokens, normalised state, images, actions in robot units

Opening checks names, shapes and dtypes of all tensors and reads everything but the weights themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from flashrt_ros.errors import CheckpointError, ConfigError
from flashrt_ros.models import lerobot, openpi
from flashrt_ros.models.image import RESIZES
from flashrt_ros.models.jsonfile import optional, read_json
from flashrt_ros.models.processing import Processing
from flashrt_ros.models.prompt import FORMS
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensorfile import TensorFile
from flashrt_ros.models.tensors import check_shapes, expected_tensors
from flashrt_ros.policy import PolicyOptions


@dataclass(frozen=True)
class Checkpoint:
    """format: 'openpi' or 'lerobot'. tensors: on the CPU, dtype as stored, checked for NaN when read.

    trained_prefix: rows of frozen prefix that it was trained with (training-time RTC); 0 for none.
    """

    path: Path
    format: str
    spec: PolicySpec
    tensors: Mapping[str, Tensor]
    processing: Processing
    trained_prefix: int = 0


def open_checkpoint(path: Path | str, options: PolicyOptions | None = None) -> Checkpoint:
    """Raises CheckpointError for what is missing, damaged or foreign, and ConfigError for the options."""
    directory, options = Path(path), options or PolicyOptions()
    check_options(options)
    if not directory.is_dir():
        raise CheckpointError(
            'there is no such directory', str(directory), 'give the directory of a checkpoint'
        )
    config = read_json(directory / 'config.json')
    layout = _format(config, directory)
    tensors = TensorFile(directory / 'model.safetensors')
    reader = lerobot if layout == 'lerobot' else openpi
    spec = reader.read_spec(directory, config, tensors.shapes)
    check_shapes(tensors.shapes, expected_tensors(spec), str(tensors.path))
    if options.prompt_form == 'state' and spec.has_state_token:
        raise ConfigError(
            'pi0 takes the state as a token, not in the prompt',
            'prompt_form',
            "leave it out or choose 'plain'",
        )
    processing = reader.read_processing(directory, config, spec, options)
    check_widths(processing, directory)
    trained_prefix = options.trained_prefix
    if trained_prefix is None:
        trained_prefix = optional(config, 'rtc_training_max_delay', int, directory / 'config.json', 0)
    check_trained_prefix(trained_prefix, spec.horizon, directory)
    return Checkpoint(
        directory,
        layout,
        replace(spec, steps=options.steps or spec.steps),
        tensors,
        processing,
        trained_prefix,
    )


def check_options(options: PolicyOptions) -> None:
    """Raises ConfigError for values that no checkpoint could accept."""
    choices = {'prompt_form': (options.prompt_form, FORMS), 'resize': (options.resize, RESIZES)}
    for name, (chosen, allowed) in choices.items():
        if chosen is not None and chosen not in allowed:
            raise ConfigError(f"'{chosen}' is no {name}", name, f'choose one of {", ".join(allowed)}')
    if options.steps is not None and not 1 <= options.steps <= 1000:
        raise ConfigError(
            f'{options.steps} flow steps are asked for', 'steps', 'choose 1 to 1000; 10 is usual'
        )


def check_trained_prefix(rows: int, horizon: int, directory: Path) -> None:
    """Raises CheckpointError for a trained prefix that no chunk can have."""
    if not 0 <= rows < horizon:
        raise CheckpointError(
            f'a frozen prefix of {rows} rows, for a chunk of {horizon}',
            str(directory),
            'correct rtc_training_max_delay in its config.json, or policy.trained_prefix',
        )


def check_widths(processing: Processing, directory: Path) -> None:
    """Raises CheckpointError where robot, statistics and network do not fit into each other."""
    pairs = (
        ('state_dim', processing.state_dim, processing.state.width),
        ('action_dim', processing.action_dim, processing.actions.width),
        ('delta_actions', len(processing.delta), processing.actions.width),
    )
    for name, wanted, available in pairs:
        if not 0 <= wanted <= available:
            raise CheckpointError(
                f'{name} is {wanted} wide, but the statistics have {available} values',
                str(directory),
                f'choose a {name} of at most {available}, or the statistics of this robot',
            )
        if available > processing.padded_dim:
            raise CheckpointError(
                f'the statistics have {available} values, for a network {processing.padded_dim} wide',
                str(directory),
                'use the statistics that belong to this checkpoint',
            )


def _format(config: dict[str, object], directory: Path) -> str:
    if 'type' in config:
        return 'lerobot'
    if 'action_horizon' in config:
        return 'openpi'
    raise CheckpointError(
        "config.json has neither lerobot's 'type' nor openpi's 'action_horizon'",
        str(directory),
        'give the directory of a pi0 or pi0.5 checkpoint in openpi (PyTorch) or lerobot format',
    )
