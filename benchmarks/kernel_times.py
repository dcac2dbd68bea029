"""Where a replay's time goes, kernel by kernel, from the profiler.

usage: python -m benchmarks.kernel_times [--family pi05] [--precision fp8] [--top 25]
"""

from __future__ import annotations

import argparse
from collections import defaultdict

from torch.profiler import ProfilerActivity, profile

from benchmarks.policies import SPECS, PolicyFactory, observations
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.engine import Engine


def kernel_times(engine: Engine, replays: int = 5) -> dict[str, tuple[int, float]]:
    """Kernel name -> launches and microseconds of one replay."""
    engine.replay()
    engine.read()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(replays):
            engine.replay()
        engine.read()
    totals: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for event in profiler.events():
        count, time = totals[event.name]
        totals[event.name] = count + 1, time + event.device_time
    return {name: (count // replays, time / replays) for name, (count, time) in totals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', default='pi05', choices=SPECS)
    parser.add_argument('--precision', default='fp8')
    parser.add_argument('--top', type=int, default=25)
    arguments = parser.parse_args()
    engine = PolicyFactory(KernelLibrary(find_gpu()), arguments.family).engine(arguments.precision, 2)
    engine.write(*observations(engine.spec, 2, 50, 1)[0])
    times = sorted(kernel_times(engine).items(), key=lambda item: -item[1][1])
    busy, launches = (sum(values) for values in zip(*((t, c) for _, (c, t) in times), strict=True))
    print(f'kernels busy {busy / 1e3:.2f} ms in {launches} launches')
    for name, (count, time) in times[: arguments.top]:
        print(f'{time:9.1f} us {count:5d} x {time / max(count, 1):7.2f}  {name[:90]}')


if __name__ == '__main__':
    main()
