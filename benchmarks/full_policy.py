"""Full-size pi0.5 with random weights as a whole policy, without a checkpoint on disk."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.policies import PolicyFactory
from flashrt_ros.engine.backend import CudaPolicy
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.engine import Engine
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import TINY_PI05
from flashrt_ros.policy import PolicyOptions

SMALL = replace(TINY_PI05, horizon=50)
"""Its files bring tokenizer and statistics, which have the same form at every size."""

JOINTS = 6


class FullPolicies:
    """Policies of every precision from one set of random weights."""

    def __init__(self) -> None:
        self._factory = PolicyFactory(KernelLibrary(find_gpu()), 'pi05')

    def make(self, precision: str) -> tuple[CudaPolicy, Engine]:
        """Ready for its first inference; and the engine in it."""
        factory = self._factory
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'small')
            write_random_checkpoint(path, SMALL, state_dim=JOINTS, action_dim=JOINTS)
            options = PolicyOptions(device='cuda', precision=precision, seed=0)
            small = open_checkpoint(path, options)
        processing = replace(small.processing, max_tokens=factory.spec.max_tokens)
        scales = factory.scales() if precision == 'fp8' else {}
        views, resize = len(processing.views), processing.resize
        engine = Engine(
            factory.library, factory.spec, factory.packed(precision, views), views, scales, resize
        )
        engine.capture(timed=False)
        checkpoint = replace(small, spec=factory.spec, processing=processing)
        return CudaPolicy(checkpoint, engine, options), engine
