"""Reading the JSON files of a checkpoint, with errors that name the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flashrt_ros.errors import CheckpointError

T = TypeVar('T')

AGAIN = 'download or convert the checkpoint again'


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError if there is no such file or no JSON object in it."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise CheckpointError(
            'the file does not exist', str(path), 'give the directory of a checkpoint'
        ) from error
    except (OSError, ValueError) as error:  # ValueError covers both bad JSON and bad UTF-8
        raise CheckpointError(f'the file is not valid JSON ({error})', str(path), AGAIN) from error
    if not isinstance(content, dict):
        raise CheckpointError('the file holds no JSON object', str(path), AGAIN)
    return content


def value(config: dict[str, Any], key: str, kind: type[T], path: Path) -> T:
    """The value of a key that has to be there with this type. Raises CheckpointError."""
    if key not in config:
        raise CheckpointError(f"there is no key '{key}'", str(path), AGAIN)
    found = config[key]
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise CheckpointError(f"'{key}' is {found!r}, which is not of type {kind.__name__}", str(path), AGAIN)
    return found


def optional(config: dict[str, Any], key: str, kind: type[T], path: Path, default: T) -> T:
    """The value of a key, or `default` if it is absent or null. Raises CheckpointError for another type."""
    return default if config.get(key) is None else value(config, key, kind, path)


def strings(config: dict[str, Any], key: str, path: Path) -> list[str]:
    """A list of strings; absent or null is empty."""
    found = optional(config, key, list, path, [])
    if not all(isinstance(entry, str) for entry in found):
        raise CheckpointError(f"'{key}' is no list of strings", str(path), AGAIN)
    return found


def positive(config: dict[str, Any], key: str, path: Path) -> int:
    found = value(config, key, int, path)
    if found < 1:
        raise CheckpointError(f"'{key}' is {found}", str(path), 'it has to be at least 1')
    return found


def vector(config: dict[str, Any], key: str, path: Path) -> np.ndarray:
    """A list of finite numbers as float64 [D]."""
    try:
        array = np.array(value(config, key, list, path), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"'{key}' is no list of numbers", str(path), AGAIN) from error
    return finite_vector(array, key, path)


def finite_vector(array: np.ndarray, key: str, path: Path) -> np.ndarray:
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise CheckpointError(
            f"'{key}' is no list of finite numbers", str(path), 'compute the statistics of the data set again'
        )
    return array
