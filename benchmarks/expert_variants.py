"""Builds of the fused denoise loop that differ by compile-time constants, against each other in one process.

usage: python -m benchmarks.expert_variants [--family pi05] [--precision fp8] [--replays 120] [--rounds 2]
       [--looks NAME ...] [--compile] NAME[:CONSTANT=VALUE,...] ...

Every build first: the worst cosine of two observations against the plain model in fp32, and whether twelve
repetitions on fresh exchange buffers, poisoned before, agree to the last bit. Then p50 of graph replays, in
rounds over all builds of a group; a name that begins with + begins a new group, the first build is in all.
--looks: of this build also when blocks pass the points of a layer, and how long they look for what other
blocks send. --compile: only compile, on a machine without a GPU, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.expert_loop import CAPACITY, LAYERS, STEPS, replay_times, timeline
from benchmarks.expert_trial import CALIBRATION_LENGTH, ExpertTrial, TrialShape
from flashrt_ros.engine.cuda.compiler import compile_kernels
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.launches import format_constants, launch_layers
from flashrt_ros.errors import BackendError

REPETITIONS = 12

LOOKS = ('normed for q k v', 'queries', 'attended', 'normed for gate up', 'hidden')
GATHERED = ('output parts', 'down parts', 'attention sums')
"""What kernels/expert_*.cuh record beside the points of a layer, in order."""


def parse(text: str) -> tuple[str, dict[str, int]]:
    """'name:A=1,B=2' -> name and constants."""
    name, _, constants = text.partition(':')
    pairs = [pair.split('=') for pair in constants.split(',') if pair]
    return name, {key: int(value) for key, value in pairs}


def compiled(constants: dict[str, int]) -> dict[str, int]:
    return {key: value for key, value in constants.items() if key != 'CLUSTER'}


class Builds:
    """Launches of the same loop, compiled with different constants."""

    def __init__(self, library: KernelLibrary, family: str, precision: str) -> None:
        self.library, self.precision = library, precision
        self.stamps = torch.zeros(48, 132, dtype=torch.int64, device='cuda')
        shape = TrialShape(LAYERS, 50, STEPS, CAPACITY)
        self.trial = ExpertTrial(library, family, precision, shape)
        self.observations = []
        for _ in range(2):
            noise, state = self.trial.observe(CALIBRATION_LENGTH)
            prefix = self.trial.prefix.keys.clone(), self.trial.prefix.values.clone()
            self.observations.append((noise, state, prefix, self.trial.expected(noise, state)))

    def use(self, constants: dict[str, int]) -> None:
        """Make the trial's loop launch that build. CLUSTER is not compiled in, but of the launch."""
        arguments = self.trial.loop._kept._arguments(0)
        arguments.stamps = self.stamps.data_ptr()
        launch = launch_layers(self.library, self.precision, arguments, **compiled(constants))
        cluster = constants.get('CLUSTER')

        def launch_in_clusters() -> None:
            launch.kernel(
                launch.grid,
                launch.threads,
                *launch.arguments,
                shared=launch.shared,
                cluster=cluster,
                cooperative=True,
            )

        self.trial.loop._launch = launch_in_clusters if cluster else launch  # type: ignore[assignment]

    def check(self) -> tuple[float, bool]:
        """(worst cosine, whether all repetitions are equal)."""
        cosines, equal = [], True
        for noise, state, prefix, expected in self.observations:
            self.trial.prefix.keys.copy_(prefix[0])
            self.trial.prefix.values.copy_(prefix[1])
            results = []
            for _ in range(REPETITIONS // 2):
                self.trial.loop.exchange.random_(0, 256)
                results.append(self.trial.found(noise, state))
            equal &= all(bool((result == results[0]).all()) for result in results)
            added, wanted = (results[0] - noise).double().flatten(), (expected - noise).double().flatten()
            cosines.append(float(cosine_similarity(added, wanted, dim=0)))
        return min(cosines), equal

    def looks(self, repeats: int = 8) -> Iterator[str]:
        """Medians over blocks and loops of what one thread of each block records."""
        yield from timeline(self.trial, self.stamps, repeats)
        runs = []
        for _ in range(repeats):
            self.stamps.zero_()
            self.trial.loop.launch()
            torch.cuda.synchronize()
            runs.append(self.stamps[16:].view(8, 4, 132).cpu())
        yield 'clocks to sign, looks, clocks a look | clocks to the rest (10 50 90 %), looks again'
        for i, name in enumerate(LOOKS + GATHERED):
            yield f'{name:20s} ' + describe(torch.stack([run[i] for run in runs]).double())


def describe(recorded: Tensor) -> str:
    """recorded: [runs, 4, blocks]; blocks that did not take part have zeros."""
    sign, looks, loaded, again = recorded.movedim(1, 0).flatten(1)[:, recorded[:, 2].flatten() > 0]
    each = (sign / (looks + 1))[looks > 2]
    middle = torch.quantile(loaded, torch.tensor([0.1, 0.5, 0.9], dtype=torch.double))
    first = f'{sign.median():6.0f} {looks.mean():5.1f} {each.median() if len(each) else 0:6.0f}'
    second = ' '.join(f'{q:5.0f}' for q in middle)
    return f'{first} | {second} {(again % 1000).mean():5.2f} {(again // 1000).mean():5.2f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', default='pi05')
    parser.add_argument('--precision', default='fp8')
    parser.add_argument('--replays', type=int, default=120)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--looks', action='append', default=[])
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('builds', nargs='+', type=parse)
    arguments = parser.parse_args()
    variants = dict(arguments.builds)
    if arguments.compile:
        stamped = [variants[name] | {'TIMELINE': LAYERS // 2} for name in arguments.looks]
        for constants in [*variants.values(), *stamped]:
            compile_kernels(
                'expert_layers', '90a', format_constants(arguments.precision) | compiled(constants)
            )
        return
    builds = Builds(KernelLibrary(find_gpu()), arguments.family, arguments.precision)
    for group in groups(list(variants)):
        print(f'--- {arguments.family} {arguments.precision}', flush=True)
        compare(builds, {name: variants[name] for name in group}, arguments)


def groups(names: list[str]) -> Iterator[list[str]]:
    """The first name and what follows it, up to a name that begins with '+', and so on; the first in each."""
    starts = [0, *(i for i, name in enumerate(names) if name.startswith('+')), len(names)]
    for begin, end in pairwise(starts):
        yield names[begin:end] if begin == 0 else [names[0], *names[begin:end]]


def compare(builds: Builds, variants: dict[str, dict[str, int]], arguments: argparse.Namespace) -> None:
    for name, constants in list(variants.items()):
        try:
            builds.use(constants)
            cosine, equal = builds.check()
        except BackendError as error:
            print(f'{name:10s} {error}', flush=True)
            del variants[name]
            continue
        print(f'{name:10s} cosine {cosine:.6f} {"equal" if equal else "REPETITIONS DIFFER"}', flush=True)
    noise, state = builds.observations[-1][:2]
    times: dict[str, list[Tensor]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, constants in variants.items():
            builds.use(constants)
            builds.trial.stage(noise, state)
            times[name].append(replay_times(builds.library, builds.trial.loop.launch, arguments.replays))
    print('p50 of each round, p99 of the last (ms)')
    for name, rounds in times.items():
        middles = ' '.join(f'{t.quantile(0.5):.3f}' for t in rounds)
        print(f'{name:10s} {middles} {rounds[-1].quantile(0.99):.3f}', flush=True)
    for name in (name for name in arguments.looks if name in variants):
        print(f'{name}: first, median and last block (us)', flush=True)
        builds.use(variants[name] | {'TIMELINE': LAYERS // 2})
        for line in builds.looks():
            print(line, flush=True)


if __name__ == '__main__':
    main()
