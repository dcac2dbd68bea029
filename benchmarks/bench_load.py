"""How long a full-size checkpoint takes to load, first and from packed weights, and what memory it takes.

usage: python -m benchmarks.bench_load [--family pi05] [--precision fp8 bf16] [--directory DIR]

Writes a random checkpoint of about 7 GB (bf16) into DIR, by default a temporary directory.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.policies import SPECS
from flashrt_ros.engine.backend import load
from flashrt_ros.engine.calibrate import calibrate_checkpoint, random_observations
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.policy import Observation, PolicyOptions


def measure(path: Path, precision: str, observation: Observation, calls: int = 200) -> str:
    """Load, then call: seconds to load, gibibytes that the process takes, milliseconds of whole calls."""
    options = PolicyOptions(device='cuda', precision=precision, seed=0)
    free = torch.cuda.mem_get_info()[0]
    began = perf_counter()
    policy = load(path, options)
    loaded, taken = perf_counter() - began, (free - torch.cuda.mem_get_info()[0]) / 2**30
    times = []
    for _ in range(calls):
        began = perf_counter()
        policy.infer(observation)
        times.append((perf_counter() - began) * 1e3)
    p50, p99 = np.percentile(times, [50, 99])
    policy.close()
    gc.collect()
    torch.cuda.empty_cache()
    return f'{precision}: load {loaded:.1f} s, {taken:.2f} GiB, whole call p50 {p50:.2f} ms, p99 {p99:.2f} ms'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', default='pi05', choices=SPECS)
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    parser.add_argument('--directory', type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        spec = SPECS[arguments.family]
        path = write_random_checkpoint(Path(folder) / 'policy', spec, dtype=torch.bfloat16)
        observations = random_observations(open_checkpoint(path), 8)
        calibrate_checkpoint(path, observations)
        for precision in arguments.precision:
            for state in ('first', 'packed'):
                print(f'{arguments.family} {state} {measure(path, precision, observations[0])}', flush=True)


if __name__ == '__main__':
    main()
