"""Fixtures for tests that need a GPU; without one they are skipped."""

import pytest
import torch


@pytest.fixture(scope='session')
def library():
    if not torch.cuda.is_available():
        pytest.skip('needs an NVIDIA GPU')
    from flashrt_ros.engine.cuda.device import find_gpu
    from flashrt_ros.engine.cuda.library import KernelLibrary

    return KernelLibrary(find_gpu())


@pytest.fixture
def operators(library):
    from flashrt_ros.engine.operators.forward import Operators

    return Operators(library)
