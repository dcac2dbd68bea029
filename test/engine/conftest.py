"""Fixtures for tests that need a GPU; without one they are skipped."""

import os

import pytest
import torch

WAITING = ('expert_layers', 'back_layers')
"""Kernels whose blocks wait for each other, and give up after so many looks."""


@pytest.fixture(scope='session')
def library():
    if not torch.cuda.is_available():
        pytest.skip('needs an NVIDIA GPU')
    from flashrt_ros.engine.cuda.device import find_gpu
    from flashrt_ros.engine.cuda.library import KernelLibrary

    class Library(KernelLibrary):
        """With the patience that tools/sanitizer asks for, which slows down all but the looking."""

        def kernel(self, file, name, **constants):
            if 'PATIENCE_LOOKS' in os.environ and file in WAITING:
                constants['PATIENCE_LOOKS'] = int(os.environ['PATIENCE_LOOKS'])
            return super().kernel(file, name, **constants)

    return Library(find_gpu())


@pytest.fixture
def operators(library):
    from flashrt_ros.engine.operators.forward import Operators

    return Operators(library)
