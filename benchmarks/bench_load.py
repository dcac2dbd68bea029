"""How long a full-size checkpoint takes to load, what memory it takes, and what a whole call takes.

usage: python -m benchmarks.bench_load [--family pi05] [--precision fp8 bf16] [--calls 500] [--directory DIR]
       [--output benchmarks/results/NAME.json]

A call goes from 224 x 224 pictures and joint states on the host to actions in robot units on the host. It is
timed with one observation over and over, and with a new state at every call (for pi0.5: a new prompt).
Writes a random checkpoint of about 7 GB (bf16) into DIR, by default a temporary directory.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.machine import describe
from benchmarks.policies import SPECS
from flashrt_ros.engine.backend import CudaPolicy, load
from flashrt_ros.engine.calibration.measure import calibrate_checkpoint, random_observations
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.policy import Observation, PolicyOptions

Record = dict[str, object]


def call_times(policy: CudaPolicy, observations: Sequence[Observation]) -> dict[str, float]:
    """Milliseconds of whole calls, and of what is not the graph: host work before and after it."""
    calls, hosts = [], []
    for observation in observations:
        began = perf_counter()
        timings = policy.infer(observation).timings
        calls.append((perf_counter() - began) * 1e3)
        hosts.append((timings['preprocess'] + timings['postprocess']) * 1e3)
    p50, p90, p99 = np.percentile(calls, [50, 90, 99])
    return {'p50_ms': p50, 'p90_ms': p90, 'p99_ms': p99, 'host_ms': float(np.median(hosts))}


def measure(path: Path, precision: str, observations: Sequence[Observation], calls: int) -> list[Record]:
    """Load and call; one record for loading and one for each kind of call."""
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    began = perf_counter()
    policy = load(path, PolicyOptions(device='cuda', precision=precision, seed=0))
    seconds, taken = perf_counter() - began, (free - torch.cuda.mem_get_info()[0]) / 2**30
    records: list[Record] = [{'what': 'load', 'seconds': seconds, 'gpu_gib': taken}]
    call_times(policy, observations[:10])
    rng, one = np.random.default_rng(0), observations[0]
    changing = [
        replace(one, state=rng.standard_normal(len(one.state)).astype(np.float32)) for _ in range(calls)
    ]
    for what, given in (('same observation', [one] * calls), ('new state', changing)):
        records.append({'what': what, **call_times(policy, given)})
    policy.close()
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--family', default='pi05', choices=SPECS)
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    parser.add_argument('--views', type=int, default=2)
    parser.add_argument('--calls', type=int, default=500)
    parser.add_argument('--directory', type=Path)
    parser.add_argument('--output', type=Path)
    arguments = parser.parse_args()
    records: list[Record] = []
    report = {'machine': describe(), 'records': records}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        path = write_random_checkpoint(Path(folder) / 'policy', SPECS[arguments.family], dtype=torch.bfloat16)
        observations = [
            replace(o, images=dict(list(o.images.items())[: arguments.views]))
            for o in random_observations(open_checkpoint(path), 8)
        ]
        calibrate_checkpoint(path, observations)
        for precision in arguments.precision:
            for state in ('first', 'packed'):
                for record in measure(path, precision, observations, arguments.calls):
                    record = {
                        'model': arguments.family,
                        'precision': precision,
                        'views': arguments.views,
                        'weights': state,
                        **record,
                    }
                    records.append(record)
                    print(json.dumps(record), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
