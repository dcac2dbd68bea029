"""What guidance costs in the denoise loop, at full size with random weights.

usage: python -m benchmarks.guidance [--family pi05 pi0] [--precision fp8 bf16] [--length 562] [--rows 10]
       [--timeline]

Prints p50, p90 and p99 of graph replays in milliseconds, of four kinds that take turns, so that clocks and
temperature are the same for all: without guidance, with identity guidance, with a frozen prefix (one graph
for these three), and with the true vector-Jacobian product, whose loop has a graph of its own and whose way
back is in bf16 or, in fp8, E5M2 by E4M3. Of the last also the cosine of what guidance changes with the plain
model's, and with --timeline when the blocks of the way back pass the points of a layer in the middle.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.expert_loop import CAPACITY, LAYERS, STEPS, WARM_UP, percentiles, timeline
from benchmarks.expert_trial import ExpertTrial, TrialShape, exact_loop
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.graph import StagedGraph
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.exact import ExactDenoise
from flashrt_ros.models.guidance import Guide, guidance_weight
from flashrt_ros.models.spec import PolicySpec

HORIZON, REPLAYS = 50, 200

POINTS = (
    *('layer begins', 'down multiplied', 'hidden sent', 'gate up multiplied', 'parts sent', 'parts there'),
    *('normed sent', 'output multiplied', 'upstream sent', 'upstream there', 'slopes there'),
    *('attention parts sent', 'attention parts there', 'q k v multiplied', 'parts sent', 'parts there'),
    'normed sent',
)
"""The points that kernels/back_*.cu* stamp, in order."""


def guides(spec: PolicySpec, rows: int) -> dict[str, Guide | None]:
    """The kinds of guidance by name; prefix only where the family has it."""
    shape = (spec.horizon, spec.action_dim)
    target, weights, none = torch.randn(1, *shape), torch.rand(shape), torch.zeros(shape)
    gammas = tuple(guidance_weight(1 - step / spec.steps, 5.0) for step in range(spec.steps))
    kinds = {'plain': None, 'identity': Guide('identity', target, weights, 0, gammas)}
    if spec.has_ada_rms:
        kinds['prefix'] = Guide('prefix', target, none, rows, gammas)
    return kinds | {'exact': Guide('exact', target, weights, 0, gammas)}


class Loops:
    """Both loops of one policy on the same weights and prefix, each in a graph."""

    def __init__(self, trial: ExpertTrial, exact: ExactDenoise) -> None:
        self.trial, self.exact = trial, exact
        self.stream = trial.library.context.new_stream()
        works = {False: trial.loop.launch, True: exact.run}
        self._graphs = {
            is_exact: StagedGraph([('loop', work)], self.stream) for is_exact, work in works.items()
        }

    def stage(self, guide: Guide | None, noise: Tensor, state: Tensor) -> None:
        """On the current stream."""
        if guide is not None and guide.method == 'exact':
            self.exact.guide.write(guide)
            self.exact.actions.copy_(noise)
            self.exact.state.copy_(state)
        else:
            self.trial.guide.write(guide)
            self.trial.stage(noise, state)

    def replay(self, guide: Guide | None) -> None:
        self._graphs[guide is not None and guide.method == 'exact'].launch()


def times_in_turn(
    loops: Loops, kinds: dict[str, Guide | None], noise: Tensor, state: Tensor
) -> dict[str, Tensor]:
    """Sorted milliseconds of replays for each kind of guidance."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    with torch.cuda.stream(loops.stream):
        for _ in range(REPLAYS + WARM_UP):
            for name, guide in kinds.items():
                loops.stage(guide, noise, state)
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                loops.replay(guide)
                end.record()
                end.synchronize()
                times[name].append(begin.elapsed_time(end))
    return {name: torch.tensor(values[WARM_UP:]).sort().values for name, values in times.items()}


def agreement(loops: Loops, guide: Guide, noise: Tensor, state: Tensor) -> float:
    """Cosine of what exact guidance changes, of the loop and of the plain model."""
    off = Guide('exact', guide.target, torch.zeros_like(guide.weights), 0, guide.gammas)
    found, expected = [], []
    for each in (off, guide):
        with torch.cuda.stream(loops.stream):
            loops.stage(each, noise, state)
            loops.replay(each)
        loops.stream.synchronize()
        found.append(loops.exact.actions.clone())
        on_device = Guide('exact', each.target.cuda(), each.weights.cuda(), 0, each.gammas)
        expected.append(loops.trial.expected(noise, state, guide=on_device))
    change, right = ((guided - free).double().flatten() for free, guided in (found, expected))
    return float(cosine_similarity(change, right, dim=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', nargs='+', default=['pi05'])
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    parser.add_argument('--length', type=int, default=562, help='prefix tokens')
    parser.add_argument('--rows', type=int, default=10, help='frozen rows')
    parser.add_argument('--timeline', action='store_true')
    arguments = parser.parse_args()
    gpu = find_gpu()
    print(f'{gpu.name}, torch {torch.__version__}, p50 / p90 / p99 of {REPLAYS} graph replays')
    library = KernelLibrary(gpu)
    for family in arguments.family:
        for precision in arguments.precision:
            trial = ExpertTrial(library, family, precision, TrialShape(LAYERS, HORIZON, STEPS, CAPACITY))
            observed, kinds = trial.observe(arguments.length), guides(trial.spec, arguments.rows)
            loops = Loops(trial, exact_loop(trial))
            for name, times in times_in_turn(loops, kinds, *observed).items():
                print(f'{family} {precision} {name:8s} {percentiles(times)} ms', flush=True)
            exact = kinds['exact']
            if exact is not None:
                print(f'{family} exact: cosine of the change {agreement(loops, exact, *observed):.6f}')
            if arguments.timeline:
                stamps = torch.zeros(len(POINTS), 132, dtype=torch.int64, device='cuda')
                stamped = exact_loop(trial, stamps=stamps)
                with torch.no_grad():
                    for line in timeline(stamped.run, stamps, POINTS):
                        print(f'    {line}')


if __name__ == '__main__':
    main()
