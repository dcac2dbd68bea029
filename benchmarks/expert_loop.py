"""The fused denoise loop alone, at full size with random weights: latency, where it goes, and accuracy.

usage: python -m benchmarks.expert_loop [--family pi05 pi0] [--precision fp8 bf16] [--horizon 50 10]
       [--length 562] [--observations 3] [--kernels]

Prints p50, p90 and p99 of graph replays in milliseconds. --kernels also times chains of one kernel each (180
launches, the weights of a different layer every time): what a kernel costs behind itself, not what it adds
to the loop.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from flashrt_ros.engine.device import find_gpu
from flashrt_ros.engine.expert import ExpertLoop
from flashrt_ros.engine.expert_launches import Launch
from flashrt_ros.engine.expert_trial import ExpertTrial, TrialShape
from flashrt_ros.engine.library import KernelLibrary

LAYERS, STEPS, CAPACITY = 18, 10, 712
REPLAYS, WARM_UP = 300, 20


def replay_times(library: KernelLibrary, launch: Callable[[], None], replays: int = REPLAYS) -> Tensor:
    """Sorted milliseconds of graph replays."""
    stream, graph = library.context.new_stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        launch()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        launch()
    times = []
    with torch.cuda.stream(stream):
        for _ in range(replays + WARM_UP):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return torch.tensor(times[WARM_UP:]).sort().values


def percentiles(times: Tensor) -> str:
    return ' / '.join(f'{times.quantile(q):.3f}' for q in (0.5, 0.9, 0.99))


def single_kernels(loop: ExpertLoop) -> Iterator[tuple[str, Callable[[], None]]]:
    """Chains of one kernel, of every layer and step."""
    for name in sorted({launch.kernel.name for launch in loop.launches}):
        chosen = [launch for launch in loop.launches if launch.kernel.name == name]

        def run(chosen: list[Launch] = chosen) -> None:
            for i, launch in enumerate(chosen):
                launch(dependent=i > 0)

        yield f'{name} x {len(chosen)}', run


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
    trial = ExpertTrial(library, family, precision, TrialShape(LAYERS, horizon, STEPS, CAPACITY))
    least, largest = worst_of(trial, arguments.length, arguments.observations)
    trial.stage(*trial.observe(arguments.length))
    times = percentiles(replay_times(library, trial.loop.launch))
    print(
        f'{family} {precision} H{horizon} prefix {arguments.length}: {times} ms; '
        f'worst cosine {least:.6f}, relative error {largest:.4f}',
        flush=True,
    )
    if arguments.kernels:
        for name, launch in single_kernels(trial.loop):
            print(f'    {name}: {replay_times(library, launch, 50).median():.3f} ms', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', nargs='+', default=['pi05'])
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    parser.add_argument('--horizon', nargs='+', type=int, default=[50])
    parser.add_argument('--length', type=int, default=562)
    parser.add_argument('--observations', type=int, default=3)
    parser.add_argument('--kernels', action='store_true')
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
