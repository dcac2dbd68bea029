"""Policies that are loaded and closed again and again leave no GPU memory behind."""

import os

import numpy as np
import pytest

from flashrt_ros.engine.backend import load
from flashrt_ros.engine.calibration.measure import random_observations
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.policy import Guidance, PolicyOptions

CYCLES, FIRST = 30, 4
"""Loads in all, and how many of them the libraries may use to settle."""

LEFT = 24 << 20
"""Bytes that the other cycles may take from the device for good: less than 1 MB each. One policy takes more
than twice that."""


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif('PYTEST_XDIST_WORKER' in os.environ, reason='what is free depends on the other workers')
@pytest.mark.parametrize('guidance', ['', 'exact'])
def test_cycles_of_load_infer_and_close_leave_nothing_behind(library, tmp_path, guidance):
    import torch

    path = write_random_checkpoint(tmp_path / 'policy', NANO_PI05)
    observation = random_observations(open_checkpoint(path), 1)[0]
    options = PolicyOptions(device='cuda', precision='bf16', steps=2, guidance=guidance)
    given = Guidance('exact', np.zeros((8, 6), np.float32), np.ones(8, np.float32)) if guidance else None
    free, held, first = [], [], None
    for _ in range(CYCLES if guidance else CYCLES // 2):
        policy = load(path, options)
        actions = policy.infer(observation, np.zeros((50, 32), np.float32), given).actions
        first = actions if first is None else first
        np.testing.assert_array_equal(actions, first)
        during = torch.cuda.memory_allocated()
        policy.close()
        held.append(torch.cuda.memory_allocated())
        free.append(torch.cuda.mem_get_info()[0])
        assert during - held[-1] > 1 << 20  # closing gives back at once
    print('free', [f'{(x - free[0]) / 1e6:.1f}' for x in free], 'held', [f'{x / 1e6:.1f}' for x in held])
    assert held[-1] <= held[FIRST] + (1 << 16)
    assert free[FIRST] - free[-1] < LEFT
