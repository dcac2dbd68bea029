"""How the results of one evaluation lie on disk.

OUT/evaluation.json             what was evaluated, and every metric; the same bytes for the same work
OUT/timing.json                 when, on which machine, and how long every stage took
OUT/report.html, OUT/*.png      for people
OUT/VARIANT/EPISODE/episode.npz     arrays of one episode (see `replay.episode`)
OUT/VARIANT/EPISODE/timing.json     stage -> seconds of every chunk
OUT/VARIANT/EPISODE/results/        MCAP rosbag2: chunks, stats, commands and pictures
OUT/VARIANT/EPISODE/done.json       written last: the episode is finished, and of which work
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashrt_ros.errors import FlashRTError

EVALUATION, TIMING, EPISODE, DONE, RESULTS = (
    'evaluation.json',
    'timing.json',
    'episode.npz',
    'done.json',
    'results',
)


class ResultsError(FlashRTError):
    """A folder of results cannot be used."""


def write_json(path: Path, content: Any) -> None:
    """Complete or not at all. Numbers that are not finite become null."""
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(_plain(content), indent=1) + '\n', encoding='utf-8')
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Raises ResultsError for a file that is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ResultsError(f'it cannot be read ({error})', str(path), 'evaluate the bags again') from error


def finished(folder: Path, key: str) -> bool:
    """Whether this folder holds the finished episode of exactly this work."""
    try:
        content = json.loads((folder / DONE).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get('key') == key and (folder / EPISODE).is_file()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, 'tolist'):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
