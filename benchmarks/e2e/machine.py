"""What the figures were measured on, with or without a GPU."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def describe(device: str) -> dict[str, str]:
    """Processor, its load, middleware, commit and date; GPU and driver where the policy runs on one."""
    found = {
        'cpu': _cpu(),
        'cores': str(os.cpu_count()),
        'kernel': platform.release(),
        'python': platform.python_version(),
        'ros': os.environ.get('ROS_DISTRO', 'unknown'),
        'rmw': os.environ.get('RMW_IMPLEMENTATION', 'default'),
        'load': f'{os.getloadavg()[0]:.2f}',
        'commit': _commit(),
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
    }
    if device == 'cuda':
        from benchmarks.machine import describe as describe_gpu

        found = {**describe_gpu(), **found}
    return found


def _cpu() -> str:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return next((line.partition(': ')[2] for line in lines if line.startswith('model name')), 'unknown')


def _commit() -> str:
    command = ['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or 'unknown'
