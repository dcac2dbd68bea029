"""Graphs are recorded with prefixes that the denoise loop has room for, and with room for every prompt."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from flashrt_ros.engine import engine as module
from flashrt_ros.engine.engine import Engine, longest_prefix, prompt_sizes
from flashrt_ros.models.spec import PI0, PI05

SPECS = [PI0, PI05, replace(PI05, max_tokens=64), replace(PI05, max_tokens=129)]


@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.parametrize('views', [1, 2, 3])
def test_no_recorded_prefix_is_longer_than_the_longest_one(monkeypatch, spec, views):
    engine, lengths = Engine.__new__(Engine), {}
    engine.spec, engine.views, engine.stream = spec, views, None
    engine._seeing, engine._acting = {}, {}
    engine.cache = SimpleNamespace(length=torch.zeros(1, dtype=torch.int32))
    engine.denoise = SimpleNamespace(actions=torch.ones(spec.horizon, spec.action_dim))
    engine.exact = None
    engine.seeing, engine.acting = lambda views: None, lambda views, rows, exact: (views, rows)

    def record(size, *_):
        if size is not None:
            lengths[size] = int(engine.cache.length)

    monkeypatch.setattr(module, 'StagedGraph', record)
    monkeypatch.setattr('torch.cuda.graph_pool_handle', lambda: None)
    monkeypatch.setattr('torch.cuda.synchronize', lambda: None)
    engine.capture()
    sizes = prompt_sizes(spec.max_tokens)
    assert set(lengths) == {(v, rows) for v in range(1, views + 1) for rows in sizes}
    assert max(lengths.values()) == longest_prefix(spec, views, spec.max_tokens)
    assert sizes[-1] >= spec.max_tokens
    assert all(length <= v * 256 + rows for (v, rows), length in lengths.items())
