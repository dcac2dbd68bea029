"""Recording work as a graph."""

import pytest
import torch

from flashrt_ros.engine.cuda.graph import StagedGraph

pytestmark = pytest.mark.gpu


def test_what_is_recorded_waits_for_what_is_on_its_way(library):
    source, seen = torch.zeros(2, 1, device='cuda')
    torch.cuda._sleep(100_000_000)
    source.fill_(1)
    StagedGraph([('copy', lambda: seen.copy_(source))], library.context.new_stream())
    assert seen == 1
