"""The fused denoise loop alone, at full size with random weights: latency, where it goes, and accuracy.

usage: python -m benchmarks.expert_loop [--family pi05 pi0] [--precision fp8 bf16] [--horizon 50 10]
       [--length 562] [--observations 3] [--timeline]

Prints p50, p90 and p99 of graph replays in milliseconds. --timeline also prints when the blocks of the
layers' kernel pass the points of a layer in the middle, in microseconds since the first one entered it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.expert_trial import ExpertTrial, TrialShape
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.graph import StagedGraph
from flashrt_ros.engine.cuda.library import KernelLibrary

LAYERS, STEPS, CAPACITY = 18, 10, 712
REPLAYS, WARM_UP = 300, 20


def replay_times(library: KernelLibrary, launch: Callable[[], None], replays: int = REPLAYS) -> Tensor:
    """Sorted milliseconds of graph replays."""
    stream = library.context.new_stream()
    graph = StagedGraph([('loop', launch)], stream)
    times = []
    with torch.cuda.stream(stream):
        for _ in range(replays + WARM_UP):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.launch()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return torch.tensor(times[WARM_UP:]).sort().values


def percentiles(times: Tensor) -> str:
    return ' / '.join(f'{times.quantile(q):.3f}' for q in (0.5, 0.9, 0.99))


POINTS = (
    *('layer begins', 'q k v multiplied', 'q k v sent', 'queries and keys there', 'logits', 'sums sent'),
    *('attended sent', 'output multiplied', 'parts there', 'normed sent', 'gate up multiplied'),
    *('hidden sent', 'down multiplied', 'parts there', 'normed sent'),
)
"""The points that kernels/expert_*.cuh stamp, in order."""


def timeline(
    launch: Callable[[], None], stamps: Tensor, points: Sequence[str] = POINTS, repeats: int = 8
) -> Iterator[str]:
    """For each point the first, median and last block, microseconds, averaged over `repeats` loops."""
    runs = []
    for _ in range(repeats):
        stamps.zero_()
        launch()
        torch.cuda.synchronize()
        runs.append(stamps.cpu())
    for i, name in enumerate(points):
        sorted_ = [
            (run[i][run[i] > 0] - run[0][run[0] > 0].min()).sort().values.double() / 1e3 for run in runs
        ]
        first, median, last = (
            sum(float(s[place(len(s))]) for s in sorted_) / repeats
            for place in (lambda n: 0, lambda n: n // 2, lambda n: n - 1)
        )
        yield f'{name:24s} {first:6.2f} {median:6.2f} {last:6.2f}'


def worst_of(trial: ExpertTrial, length: int, observations: int) -> tuple[float, float]:
    """Least cosine and largest relative error of what the loop adds to the noise, against fp32."""
    cosines, errors = [], []
    for _ in range(observations):
        observed = trial.observe(length)
        added, expected = (x - observed[0] for x in (trial.found(*observed), trial.expected(*observed)))
        cosines.append(float(cosine_similarity(added.double().flatten(), expected.double().flatten(), dim=0)))
        errors.append(float((added - expected).norm() / expected.norm()))
    return min(cosines, default=float('nan')), max(errors, default=float('nan'))


def report(
    library: KernelLibrary, arguments: argparse.Namespace, family: str, precision: str, horizon: int
) -> None:
    shape = TrialShape(LAYERS, horizon, STEPS, CAPACITY)
    trial = ExpertTrial(library, family, precision, shape)
    least, largest = worst_of(trial, arguments.length, arguments.observations)
    trial.stage(*trial.observe(arguments.length))
    times = percentiles(replay_times(library, trial.loop.launch))
    print(
        f'{family} {precision} H{horizon} prefix {arguments.length}: {times} ms; '
        f'worst cosine {least:.6f}, relative error {largest:.4f}',
        flush=True,
    )
    if arguments.timeline:
        stamps = torch.zeros(16, 132, dtype=torch.int64, device='cuda')
        stamped = ExpertTrial(library, family, precision, shape, stamps=stamps)
        stamped.stage(*stamped.observe(arguments.length))
        print('    point, first, median and last block (us)')
        for line in timeline(stamped.loop.launch, stamps):
            print(f'    {line}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', nargs='+', default=['pi05'])
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    parser.add_argument('--horizon', nargs='+', type=int, default=[50])
    parser.add_argument('--length', type=int, default=562)
    parser.add_argument('--observations', type=int, default=3)
    parser.add_argument('--timeline', action='store_true')
    arguments = parser.parse_args()
    gpu = find_gpu()
    print(f'{gpu.name}, torch {torch.__version__}, p50 / p90 / p99 of {REPLAYS} graph replays')
    library = KernelLibrary(gpu)
    for family in arguments.family:
        for precision in arguments.precision:
            for horizon in arguments.horizon:
                report(library, arguments, family, precision, horizon)


if __name__ == '__main__':
    main()
