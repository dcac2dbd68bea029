"""How the keys of the Gemma attention are spread over blocks on Hopper."""

import pytest

from flashrt_ros.engine.attention_sm90 import split_keys


@pytest.mark.parametrize(
    ('tiles', 'split'), [(1, 8), (17, 7), (36, 3), (44, 3), (45, 2), (66, 2), (67, 1), (200, 1)]
)
def test_as_many_blocks_as_run_at_once(tiles, split):
    assert split_keys(tiles, lambda blocks: 132 // blocks) == split


def test_clusters_that_do_not_fit_are_not_used():
    assert split_keys(36, {2: 64, 3: 38, 4: 28, 5: 20, 6: 17, 7: 15, 8: 14}.get) == 3
    assert split_keys(40, {2: 64, 3: 38, 4: 28, 5: 20, 6: 17, 7: 15, 8: 14}.get) == 2
