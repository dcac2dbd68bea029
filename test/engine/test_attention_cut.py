"""How the keys of the Gemma attention are spread over blocks on Hopper."""

import pytest

from flashrt_ros.engine.operators.attention_sm90 import AT_ONCE, REPEATED, keys_at_once, split_keys

H100 = {2: 66, 3: 39, 4: 30, 5: 22, 6: 17, 7: 15, 8: 15}
"""Clusters of so many blocks, one on each multiprocessor, that are resident at once on an H100."""


@pytest.mark.parametrize(
    ('tiles', 'capacity', 'split'),
    [
        (36, 576, 3),
        (20, 320, 2),
        (4, 896, 5),
        (1, 5000, 8),
        (40, 640, 2),
        (52, 832, 2),
        (70, 64, 1),
        (70, 1120, 1),
    ],
)
def test_all_blocks_run_at_once_and_no_more_than_needed(tiles, capacity, split):
    assert split_keys(tiles, capacity, H100.__getitem__) == split


@pytest.mark.parametrize(
    ('share', 'keys'), [(150, 192), (192, 192), (416, 160), (448, 160), (496, 128), (512, 128)]
)
def test_a_block_passes_over_its_keys_as_seldom_as_it_can(share, keys):
    assert keys_at_once(share) == keys
    assert -(-share // keys) == min(
        -(-share // some) for some in (*REPEATED, AT_ONCE if share <= AT_ONCE else 1)
    )
