"""Nsight Compute on the kernels that take most of a policy's time.

usage: python -m benchmarks.profile [--family pi05] [--precision fp8] [--kernels REGEX]

Runs itself under ncu (from the CUDA toolkit, with permission to read the GPU's counters) and prints, for each
kernel, its launches and the medians of duration and of throughputs in per cent of peak.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
from collections import defaultdict
from statistics import median

TIME = 'gpu__time_duration.sum'
METRICS = {
    TIME: 'us',
    'sm__throughput.avg.pct_of_peak_sustained_elapsed': 'SM %',
    # Cycles: a product of a warpgroup is one instruction and takes many.
    'sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active': 'tensor %',
    'gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed': 'memory %',
    'dram__throughput.avg.pct_of_peak_sustained_elapsed': 'DRAM %',
    'lts__throughput.avg.pct_of_peak_sustained_elapsed': 'L2 %',
}
MOST = 'expert_layers|gated_gemm|split_gemm'
"""The kernels that take most of the time: the denoise loop, and products of the prefill."""

INSIDE = 'FLASHRT_PROFILED'
"""Set in the environment of the process that ncu watches."""


def run_once(family: str, precision: str) -> None:
    """Every stage once, launched one kernel at a time."""
    import torch

    from benchmarks.policies import PolicyFactory, observations
    from flashrt_ros.engine.cuda.device import find_gpu
    from flashrt_ros.engine.cuda.library import KernelLibrary

    factory = PolicyFactory(KernelLibrary(find_gpu()), family)
    engine = factory.build(precision, 2)
    engine.write(*observations(engine.spec, 2, 50, 1)[0])
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    with torch.cuda.stream(engine.stream):
        for _, work in engine.stages(2, engine.prompt_rows(50)):
            work()
    engine.read()
    torch.cuda.profiler.stop()


def profile(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """One row of `METRICS` for each kernel launch that ncu saw."""
    command = [
        'ncu',
        '--csv',
        '--print-units',
        'base',
        '--clock-control',
        'none',
        '--profile-from-start',
        'off',
        '--metrics',
        ','.join(METRICS),
    ]
    command += ['--kernel-name', f'regex:{arguments.kernels}', '--launch-count', str(arguments.launches)]
    command += [sys.executable, '-m', 'benchmarks.profile']
    command += ['--family', arguments.family, '--precision', arguments.precision]
    result = subprocess.run(command, env={**os.environ, INSIDE: '1'}, capture_output=True, text=True)
    start = result.stdout.find('"ID"')
    if result.returncode != 0 or start < 0:
        raise SystemExit(f'ncu failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}')
    launches: dict[str, dict[str, str]] = {}
    for line in csv.DictReader(io.StringIO(result.stdout[start:])):
        row = launches.setdefault(line['ID'], {'kernel': line['Kernel Name'][:60]})
        row[METRICS.get(line['Metric Name'], line['Metric Name'])] = line['Metric Value']
    return list(launches.values())


def medians(launches: list[dict[str, str]]) -> list[dict[str, str]]:
    """One row for each kernel, those that take longest altogether first."""
    of: dict[str, list[dict[str, str]]] = defaultdict(list)
    for launch in launches:
        of[launch['kernel']].append(launch)

    def values(kernel: str, column: str) -> list[float]:
        scale = 1e-3 if column == METRICS[TIME] else 1.0  # nanoseconds
        return [float(launch[column].replace(',', '')) * scale for launch in of[kernel]]

    order = sorted(of, key=lambda kernel: -sum(values(kernel, METRICS[TIME])))
    return [
        {
            'kernel': kernel,
            'launches': str(len(of[kernel])),
            **{column: f'{median(values(kernel, column)):.1f}' for column in METRICS.values()},
        }
        for kernel in order
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--family', default='pi05')
    parser.add_argument('--precision', default='fp8')
    parser.add_argument('--kernels', default=MOST, help='regular expression (%(default)s)')
    parser.add_argument('--launches', type=int, default=100, help='at most (%(default)s)')
    arguments = parser.parse_args()
    if INSIDE in os.environ:
        run_once(arguments.family, arguments.precision)
        return
    rows, columns = medians(profile(arguments)), ['kernel', 'launches', *METRICS.values()]
    print(' | '.join(columns))
    for row in rows:
        print(' | '.join(row.get(column, '') for column in columns))


if __name__ == '__main__':
    main()
