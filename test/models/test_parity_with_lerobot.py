"""The same observation through lerobot and through this package gives the same actions, stage by stage.

The everyday tests compare with committed results; the slow ones run lerobot here, on more views, prompts and
seeds. Both need nothing but public packages and random weights.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.small_tokenizer import write_small_tokenizer
from models.conftest import TINY
from models.oracle_cases import load_with_steps, read_cases, relative_error

FIXTURES = Path(__file__).parents[1] / 'fixtures'
ORACLE = Path(__file__).parents[1] / 'oracle'
ENVIRONMENT = Path(__file__).parents[2] / '.cache' / 'oracle'

TOLERANCE = 2e-6
"""Largest relative error of a chunk in fp32. Seen: 1e-7 to 5e-7; a norm epsilon of 1e-5 gives 4e-6."""


def compare(directory: Path) -> float:
    """Check every case of a directory stage by stage, and return the worst relative error of the actions."""
    worst = 0.0
    processing = open_checkpoint(directory).processing
    for case in read_cases(directory):
        expected = case.expected
        prepared = processing.prepare(case.observation)
        assert prepared.tokens[0].tolist() == expected['tokens'].tolist()
        normalized = processing.normalized_state(case.observation.state)
        np.testing.assert_array_equal(normalized, expected['normalized_state'])
        present = [view for view in processing.views if view in case.observation.images]
        for view, image in zip(present, prepared.images.double().numpy(), strict=True):
            np.testing.assert_allclose(image.mean(2), expected[f'rows.{view}'], atol=1e-6)
            np.testing.assert_allclose(image.mean(1), expected[f'columns.{view}'], atol=1e-6)
        restored = processing.restore(expected['network'], case.observation.state)
        np.testing.assert_allclose(restored, expected['actions'], rtol=1e-6, atol=1e-6)

        policy = load_with_steps(directory, case.steps)
        actions = policy.infer(case.observation, expected['noise']).actions
        worst = max(worst, relative_error(actions, expected['actions']))
    return worst


@pytest.mark.parametrize('family', ['pi0', 'pi05'])
def test_committed_results_of_lerobot_are_reproduced(family: str) -> None:
    error = compare(FIXTURES / f'lerobot_{family}')
    print(f'{family}: relative error {error:.1e}')
    assert error < TOLERANCE


@pytest.fixture(scope='session')
def lerobot() -> Callable[..., None]:
    """Runs `generate.py` with these arguments where lerobot is installed."""
    if sys.version_info < (3, 11):
        pytest.skip('lerobot 0.6.1 needs Python 3.11 or newer')
    subprocess.run([sys.executable, str(ORACLE / 'environment.py'), str(ENVIRONMENT)], check=True)

    def run(*arguments: Path | str) -> None:
        command = [ENVIRONMENT / 'bin' / 'python', ORACLE / 'generate.py', *arguments]
        subprocess.run([str(part) for part in command], check=True)

    return run


@pytest.fixture(scope='session')
def generated(lerobot: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and results of lerobot, computed now."""
    directory = tmp_path_factory.mktemp('oracle')
    write_small_tokenizer(directory / 'tokenizer.json')
    lerobot('--tokenizer', directory / 'tokenizer.json', '--out', directory, '--seeds', '0', '1', '2')
    return directory


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('seed', [0, 1, 2])
@pytest.mark.parametrize('family', ['pi0', 'pi05'])
def test_lerobot_run_now_gives_the_same_actions(family: str, seed: int, generated: Path) -> None:
    error = compare(generated / f'{family}_{seed}')
    print(f'{family}, seed {seed}, 1 to 3 views, 4 prompt lengths: relative error {error:.1e}')
    assert error < TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('family', ['pi0', 'pi05'])
def test_lerobot_reads_what_is_written_here(
    family: str, lerobot: Callable[..., None], tmp_path: Path
) -> None:
    directory = write_random_checkpoint(
        tmp_path / family, TINY[family], 'lerobot', views=('front', 'wrist', 'side')
    )
    lerobot('--read', directory)
    error = compare(directory)
    print(f'{family}, written here and read by lerobot: relative error {error:.1e}')
    assert error < TOLERANCE
