"""GPU tests under compute-sanitizer: what it watches and how it is started."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

KERNELS = Path(__file__).parents[2] / 'kernels'
KERNEL = re.compile(r'__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(')

ENVIRONMENT = {**os.environ, 'PYTORCH_NO_CUDA_MEMORY_CACHING': '1', 'PATIENCE_LOOKS': str(1 << 28)}
"""Without torch's caching allocator every tensor is an allocation of its own, which the sanitizer knows.

Blocks look for what others give them as fast as ever, while those others take far longer: so they look for
minutes before they give up, not for seconds (kernels/expert_exchange.cuh)."""


def pytest_under(sanitizer: list[str], pytest_arguments: list[str]) -> list[str]:
    """The command that runs tests with only this repository's kernels watched.

    Kernels of torch and its libraries are left alone: with them the references of the tests, which are in
    double precision, take most of the time.
    """
    names = {name for file in KERNELS.glob('*.cu') for name in KERNEL.findall(file.read_text())}
    ours = [word for name in sorted(names) for word in ('--kernel-name', f'kne={name}')]
    return [*sanitizer, *ours, sys.executable, '-m', 'pytest', '-q', *pytest_arguments]
