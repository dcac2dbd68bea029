"""The fused denoise loop alone, at full size with random weights: latency, where it goes, and accuracy.

usage: python -m benchmarks.expert_loop [--precision fp8 bf16] [--horizon 50 10] [--length 562] [--lookahead 0 2]
       [--kernels] [--observations 3]

Prints p50, p90 and p99 of graph replays in milliseconds. --kernels also times chains of one kernel each (180 launches,
the weights of a different layer every time), which says what a kernel costs behind itself, not what it adds to the loop.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch

from flashrt_ros.engine.device import find_gpu
from flashrt_ros.engine.expert import ExpertLoop, ExpertShape, Step
from flashrt_ros.engine.library import KernelLibrary
from engine.expert_reference import LoopCase
from engine.reference import cosine, relative_error

LAYERS, STEPS, CAPACITY = 18, 10, 712


def replay_times(library: KernelLibrary, launch: Callable[[], None], replays: int = 300) -> torch.Tensor:
    """Sorted milliseconds of graph replays."""
    stream, graph = library.context.new_stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        launch()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        launch()
    times = []
    with torch.cuda.stream(stream):
        for _ in range(replays + 20):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return torch.tensor(times[20:]).sort().values


def percentiles(times: torch.Tensor) -> str:
    return ' / '.join(f'{times.quantile(q):.3f}' for q in (0.5, 0.9, 0.99))


def single_kernels(loop: ExpertLoop) -> Iterator[tuple[str, Callable[[], None]]]:
    """Chains of one kernel of each layer, over all steps."""
    plan: list[Step] = loop._plan
    names = sorted({step.kernel.name for step in plan if step.cluster or step.weights is not None})
    for name in names:
        chosen = [step for step in plan if step.kernel.name == name]

        def launch(chosen: list[Step] = chosen) -> None:
            for i, step in enumerate(chosen):
                step.kernel(
                    step.grid, 256, *step.arguments, None, 0,
                    shared=step.shared, cluster=step.cluster, dependent=i > 0,
                )  # fmt: skip

        yield f'{name} x {len(chosen)}', launch


def report(
    library: KernelLibrary, arguments: argparse.Namespace, family: str, precision: str, horizon: int
) -> None:
    case = LoopCase(library, family, precision, LAYERS, horizon, STEPS, CAPACITY)
    errors = []
    for _ in range(arguments.observations):
        observed = case.observe(arguments.length)
        added, expected = case.found(*observed) - observed[0], case.expected(*observed) - observed[0]
        errors.append((cosine(added, expected), relative_error(added, expected)))
    worst = min(errors, default=(float('nan'),) * 2)
    for lookahead in arguments.lookahead:
        case.loop._shape = ExpertShape(horizon, CAPACITY, lookahead)
        case.stage(*case.observe(arguments.length))
        times = replay_times(library, case.loop.launch)
        print(
            f'{family} {precision} H{horizon} prefix {arguments.length} lookahead {lookahead}: {percentiles(times)} ms; '
            f'worst cosine {worst[0]:.6f}, relative error {worst[1]:.4f}',
            flush=True,
        )
    if arguments.kernels:
        for name, launch in single_kernels(case.loop):
            times = replay_times(library, launch, 50)
            print(f'    {name}: {times.median():.3f} ms', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', nargs='+', default=['pi05'])
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    parser.add_argument('--horizon', nargs='+', type=int, default=[50])
    parser.add_argument('--length', type=int, default=562)
    parser.add_argument('--lookahead', nargs='+', type=int, default=[0])
    parser.add_argument('--observations', type=int, default=3)
    parser.add_argument('--kernels', action='store_true')
    arguments = parser.parse_args()
    gpu = find_gpu()
    print(f'{gpu.name}, torch {torch.__version__}, p50 / p90 / p99 of 300 graph replays')
    library = KernelLibrary(gpu)
    for family in arguments.family:
        for precision in arguments.precision:
            for horizon in arguments.horizon:
                report(library, arguments, family, precision, horizon)


if __name__ == '__main__':
    main()
