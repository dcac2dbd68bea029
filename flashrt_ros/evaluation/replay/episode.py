"""One episode: everything that was predicted, commanded and recorded, as arrays; and how they are kept on
disk."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from flashrt_ros.errors import FlashRTError

FORMAT = 1
"""Of the files; grows with every change that older software would misread."""

_JSON = 'about'


class EpisodeError(FlashRTError):
    """The stored episode cannot be read."""


@dataclass(frozen=True)
class Episode:
    """N chunks of H rows for D joints, M commands, S joint states, R recorded commands, I inputs.

    name, joints, inputs: names; the last in the order of the columns of `ages`.
    begin_ns, end_ns: of the bag. step_ns: between rows of a chunk.
    ticks_ns: [T] when the policy looked. blocked: [T] number of the reason in `reasons`, or -1 for a chunk.
    looked_ns: [N] when the inference began. observed_ns: [N] stamp of the observation. start_ns: [N] when row
    0 is due. ready_ns: [N] when the chunk reached the executor. actions: [N, H, D], rad or m.
    ages: [N, I] and skew: [N], seconds.
    commands_ns [M], commands [M, D], clamps [M, 2]: what the executor sent, and joints changed by the
    position and the motion limits. seams: numbers of the commands that were the first after a new chunk.
    measured_ns (stamps) [S], measured [S, D]. reference_ns [R], reference [R, D]: recorded commands, or the
    joint states where there are none (`reference_topic` says which).
    received_ns, stamps_ns: input name -> of every message. counts: counter -> value. problems: see `Problem`.
    """

    name: str
    joints: tuple[str, ...]
    inputs: tuple[str, ...]
    begin_ns: int
    end_ns: int
    step_ns: int
    ticks_ns: np.ndarray
    blocked: np.ndarray
    reasons: tuple[str, ...]
    looked_ns: np.ndarray
    observed_ns: np.ndarray
    start_ns: np.ndarray
    ready_ns: np.ndarray
    actions: np.ndarray
    ages: np.ndarray
    skew: np.ndarray
    commands_ns: np.ndarray
    commands: np.ndarray
    clamps: np.ndarray
    seams: np.ndarray
    measured_ns: np.ndarray
    measured: np.ndarray
    reference_ns: np.ndarray
    reference: np.ndarray
    reference_topic: str
    received_ns: dict[str, np.ndarray]
    stamps_ns: dict[str, np.ndarray]
    counts: dict[str, int]
    problems: list[dict[str, Any]]

    @property
    def chunks(self) -> int:
        return len(self.actions)

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


def save_episode(episode: Episode, path: Path) -> None:
    """Write it as .npz, the same bytes for the same episode; complete or not at all."""
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {'format': FORMAT}
    for field in fields(Episode):
        value = getattr(episode, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif field.name in ('received_ns', 'stamps_ns'):
            about[field.name] = list(value)
            arrays.update({f'{field.name}.{key}': array for key, array in value.items()})
        else:
            about[field.name] = value
    arrays[_JSON] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    # A temporary file beside it, so that whoever is interrupted leaves no half of an episode behind.
    partial = path.with_suffix('.partial')
    with zipfile.ZipFile(partial, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            # A ZipInfo made by hand carries no time of writing.
            entry = zipfile.ZipInfo(f'{name}.npy')
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue())
    partial.replace(path)


def load_episode(path: Path) -> Episode:
    """Raises EpisodeError for a file that `save_episode` did not write."""
    fix = 'evaluate the bag again'
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop(_JSON).tobytes())
        if about.pop('format') != FORMAT:
            raise EpisodeError('it was written by another version', str(path), fix)
        for group in ('received_ns', 'stamps_ns'):
            about[group] = {name: arrays.pop(f'{group}.{name}') for name in about[group]}
        for name in ('joints', 'inputs', 'reasons'):
            about[name] = tuple(about[name])
        return Episode(**about, **arrays)
    except FlashRTError:
        raise
    except Exception as error:  # Damaged archives break zipfile, numpy and json in their own ways.
        raise EpisodeError(f'it cannot be read ({type(error).__name__}: {error})', str(path), fix) from error
