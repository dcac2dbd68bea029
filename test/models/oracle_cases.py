"""Reads what `test/oracle/generate.py` wrote, and compares a policy with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from flashrt_ros.models.backend import CpuPolicy, load
from flashrt_ros.policy import Observation, PolicyOptions


@dataclass(frozen=True)
class Case:
    """One observation and what lerobot made of it; see `generate.run` for the names in `expected`."""

    observation: Observation
    steps: int
    expected: dict[str, np.ndarray]


def read_cases(directory: Path) -> Iterator[Case]:
    tensors = load_file(directory / 'cases.safetensors')
    for index, described in enumerate(json.loads((directory / 'cases.json').read_text())):
        prefix = f'{index}.'
        own = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        images = {view: own[f'image.{view}'] for view in described['views']}
        yield Case(Observation(images, own['state'], described['task']), described['steps'], own)


def load_with_steps(directory: Path, steps: int) -> CpuPolicy:
    return load(directory, PolicyOptions(steps=steps))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
