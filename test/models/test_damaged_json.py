"""Any value in a JSON file may be anything: that gives a CheckpointError or a usable checkpoint."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashrt_ros.errors import CheckpointError
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.policy import Observation
from models.conftest import Make

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 50) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
FILES = [
    ('openpi', 'config.json'),
    ('openpi', 'assets/robot/norm_stats.json'),
    ('lerobot', 'config.json'),
    ('lerobot', 'policy_preprocessor.json'),
    ('lerobot', 'policy_postprocessor.json'),
]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    document = copy.deepcopy(document)
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return document


@pytest.mark.parametrize(('layout', 'name'), FILES)
def test_one_value_is_replaced_by_anything(
    layout: str, name: str, checkpoint: Make, observation: Observation
) -> None:
    directory: Path = checkpoint(layout)
    original = json.loads((directory / name).read_text())
    all_places = places(original)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(place=st.sampled_from(all_places), value=ANYTHING)
    def damage(place: tuple[Any, ...], value: Any) -> None:
        (directory / name).write_text(json.dumps(replaced(original, place, value)))
        with contextlib.suppress(CheckpointError):
            processing = open_checkpoint(directory).processing
            assert processing.views
            assert 0 <= processing.action_dim <= processing.actions.width <= 32

    damage()
