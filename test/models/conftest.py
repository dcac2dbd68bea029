"""Small checkpoints in both formats, written once, and copied by tests that damage them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import GemmaSpec, PolicySpec, VisionSpec
from flashrt_ros.policy import Observation

TINY_PI05 = PolicySpec(
    'pi05',
    VisionSpec(layers=2, width=144, heads=2, mlp=80),
    GemmaSpec(layers=2, width=64, mlp=96, head_dim=16),
    GemmaSpec(layers=2, width=32, mlp=64, head_dim=16),
    vocab=1200,
    horizon=12,
)
TINY = {'pi05': TINY_PI05, 'pi0': replace(TINY_PI05, family='pi0', max_tokens=48)}

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def single_thread() -> None:
    """Other test processes share the cores, and threads that wait for each other there are slow."""
    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    place = tmp_path_factory.mktemp('checkpoints')
    return {
        (layout, family): write_random_checkpoint(place / f'{layout}_{family}', spec, format=layout)
        for layout in ('openpi', 'lerobot')
        for family, spec in TINY.items()
    }


@pytest.fixture
def checkpoint(originals: dict[tuple[str, str], Path], tmp_path: Path) -> Make:
    """`checkpoint(layout, family)` is a directory of the test's own, to damage at will."""

    def make(layout: str = 'openpi', family: str = 'pi05') -> Path:
        return shutil.copytree(originals[layout, family], tmp_path / f'{layout}_{family}')

    return make


@pytest.fixture
def observation() -> Observation:
    rng = np.random.default_rng(0)
    images = {
        view: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for view in ('base_0_rgb', 'left_wrist_0_rgb')
    }
    return Observation(images, rng.normal(size=6).astype(np.float32), 'pick up the red cube')
