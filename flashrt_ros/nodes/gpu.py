"""Memory and temperature of the GPU for the diagnostics, where there is one."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def gpu_values(device: str) -> dict[str, Any]:
    """Nothing on the CPU; a value that cannot be read is left out, and only that."""
    if device != 'cuda' or not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    values: dict[str, Any] = {
        'GPU memory used [GiB]': (total - free) / 2**30,
        'GPU memory [GiB]': total / 2**30,
    }
    # Needs NVIDIA's management library, which says in ways of its own that it is not there.
    with contextlib.suppress(Exception):
        values['GPU temperature [C]'] = int(torch.cuda.temperature())
    return values
