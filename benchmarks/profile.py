"""Nsight Compute on the kernels that take most of a policy's time.

usage: python -m benchmarks.profile [--family pi05] [--precision fp8] [--kernels REGEX]

Runs itself under ncu (from the CUDA toolkit, with permission to read the GPU's counters) and prints duration,
compute and memory throughput in per cent of peak, and occupancy, of one launch of each kernel.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys

METRICS = {
    'gpu__time_duration.sum': 'us',
    'sm__throughput.avg.pct_of_peak_sustained_elapsed': 'SM %',
    'sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active': 'tensor %',
    'gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed': 'memory %',
    'dram__throughput.avg.pct_of_peak_sustained_elapsed': 'DRAM %',
    'lts__throughput.avg.pct_of_peak_sustained_elapsed': 'L2 %',
}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--family', default='pi05')
    parser.add_argument('--precision', default='fp8')
    parser.add_argument('--kernels', default='.*')
    parser.add_argument('--launches', type=int, default=40)
    arguments = parser.parse_args()
    if INSIDE in os.environ:
        run_once(arguments.family, arguments.precision)
        return
    rows, columns = profile(arguments), ['kernel', *METRICS.values()]
    print(' | '.join(columns))
    for row in rows:
        print(' | '.join(row.get(column, '') for column in columns))


if __name__ == '__main__':
    main()
