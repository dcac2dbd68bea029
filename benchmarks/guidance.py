"""What guidance costs in the denoise loop at full size with random weights: none, identity, frozen prefix.

usage: python -m benchmarks.guidance [--family pi05 pi0] [--precision fp8 bf16] [--length 562] [--rows 10]

Prints p50, p90 and p99 of graph replays in milliseconds. One graph serves all kinds; they take turns, so that
clocks and temperature are the same for all.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.expert_loop import CAPACITY, LAYERS, STEPS, WARM_UP, percentiles
from flashrt_ros.engine.device import find_gpu
from flashrt_ros.engine.expert_trial import ExpertTrial, TrialShape
from flashrt_ros.engine.library import KernelLibrary
from flashrt_ros.models.guidance import Guide, guidance_weight
from flashrt_ros.models.spec import PolicySpec

HORIZON, REPLAYS = 50, 300


def guides(spec: PolicySpec, rows: int) -> dict[str, Guide | None]:
    """The kinds of guidance by name; prefix only where the family has it."""
    shape = (spec.horizon, spec.action_dim)
    target, weights, none = torch.randn(1, *shape), torch.rand(shape), torch.zeros(shape)
    gammas = tuple(guidance_weight(1 - step / spec.steps, 5.0) for step in range(spec.steps))
    kinds = {'plain': None, 'identity': Guide('identity', target, weights, 0, gammas)}
    if spec.has_ada_rms:
        kinds['prefix'] = Guide('prefix', target, none, rows, gammas)
    return kinds


def alternating_times(
    trial: ExpertTrial, kinds: dict[str, Guide | None], replays: int = REPLAYS
) -> dict[str, Tensor]:
    """Sorted milliseconds of replays of one graph of the loop for each kind of guidance."""
    stream, graph = trial.library.context.new_stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        trial.loop.launch()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        trial.loop.launch()
    times: dict[str, list[float]] = {name: [] for name in kinds}
    with torch.cuda.stream(stream):
        for _ in range(replays + WARM_UP):
            for name, guide in kinds.items():
                trial.guide.write(guide)
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                times[name].append(begin.elapsed_time(end))
    return {name: torch.tensor(values[WARM_UP:]).sort().values for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', nargs='+', default=['pi05'])
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    parser.add_argument('--length', type=int, default=562, help='prefix tokens')
    parser.add_argument('--rows', type=int, default=10, help='frozen rows')
    arguments = parser.parse_args()
    gpu = find_gpu()
    print(f'{gpu.name}, torch {torch.__version__}, p50 / p90 / p99 of {REPLAYS} graph replays')
    library = KernelLibrary(gpu)
    for family in arguments.family:
        for precision in arguments.precision:
            trial = ExpertTrial(library, family, precision, TrialShape(LAYERS, HORIZON, STEPS, CAPACITY))
            trial.stage(*trial.observe(arguments.length))
            for name, times in alternating_times(trial, guides(trial.spec, arguments.rows)).items():
                print(f'{family} {precision} {name:8s} {percentiles(times)} ms', flush=True)


if __name__ == '__main__':
    main()
