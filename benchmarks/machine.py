"""What the numbers were measured on, and what this GPU can reach at all."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from flashrt_ros.engine.cuda.device import find_gpu

ROOT = Path(__file__).resolve().parents[1]


def describe() -> dict[str, str]:
    """GPU, driver, versions, commit and date of a run. Raises BackendError without a GPU."""
    return {
        'gpu': find_gpu().name,
        'driver': _output(['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']),
        'torch': torch.__version__,
        'cuda': str(torch.version.cuda),
        'commit': _output(['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']),
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
    }


def ceilings() -> dict[str, float]:
    """Measured copy bandwidth in TB/s (bytes read and written) and matrix rates in TFLOP/s."""
    return {
        'copy_tb_s': _copy_bandwidth(),
        'bf16_tflop_s': _matrix_rate(torch.bfloat16),
        **(
            {'fp8_tflop_s': _matrix_rate(torch.float8_e4m3fn)}
            if torch.cuda.get_device_capability() >= (8, 9)
            else {}
        ),
    }


def median_ms(work: Callable[[], object], repeats: int = 20) -> float:
    """Median over event-timed calls, after three to warm up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def _copy_bandwidth() -> float:
    source = torch.randint(0, 255, (1 << 31,), dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source)) / 1e9


def _matrix_rate(dtype: torch.dtype, size: int = 8192) -> float:
    a, b = (torch.randn(size, size, device='cuda').to(dtype) for _ in range(2))
    if dtype == torch.bfloat16:
        milliseconds = median_ms(lambda: a @ b.t())
    else:
        one = torch.ones((), device='cuda')
        milliseconds = median_ms(
            lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        )
    return 2 * size**3 / milliseconds / 1e9


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or 'unknown'
