"""Builds of the fused denoise loop that differ by compile-time constants, against each other in one process.

usage: python -m benchmarks.expert_variants [--replays 120] [--rounds 2] [--timeline NAME] [--compile]
       FAMILY/PRECISION[/HORIZON] NAME[:CONSTANT=VALUE,...] ... [FAMILY/PRECISION NAME ...] ...

Of every build: the worst cosine of two observations against the plain model in fp32, whether twelve
repetitions on fresh exchange buffers, poisoned before, agree to the last bit, then p50 of graph replays in
rounds over all builds of a policy, and p99 of the last round. --timeline: of the build of that name also when
blocks pass the points of a layer. --compile: only compile, on a machine without a GPU, too.
First rounds go to stderr at once: a build that waits for ever ends the process with an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Policy:
    """What is compiled how often: the constants of its builds by name."""

    family: str
    precision: str
    horizon: int
    builds: dict[str, dict[str, int]] = field(default_factory=dict)


def parse(texts: Iterable[str]) -> list[Policy]:
    """Policies with the builds that follow them: 'pi05/fp8/50', 'name:A=1,B=2', ..."""
    policies: list[Policy] = []
    for text in texts:
        if '/' in text:
            family, precision, *horizon = text.split('/')
            policies.append(Policy(family, precision, int(horizon[0]) if horizon else 50))
            continue
        name, _, constants = text.partition(':')
        pairs = [pair.split('=') for pair in constants.split(',') if pair]
        policies[-1].builds[name] = {key: int(value) for key, value in pairs}
    return policies


class Loop:
    """A policy's loop, whose launch can be that of any build."""

    def __init__(self, library: KernelLibrary, policy: Policy) -> None:
        self.library, self.precision = library, policy.precision
        self.stamps = torch.zeros(16, 132, dtype=torch.int64, device='cuda')
        shape = TrialShape(LAYERS, policy.horizon, STEPS, CAPACITY)
        self.trial = ExpertTrial(library, policy.family, policy.precision, shape)
        self.observations = []
        for _ in range(2):
            noise, state = self.trial.observe(CALIBRATION_LENGTH)
            prefix = self.trial.prefix.keys.clone(), self.trial.prefix.values.clone()
            self.observations.append((noise, state, prefix, self.trial.expected(noise, state)))

    def use(self, constants: dict[str, int]) -> None:
        arguments = self.trial.loop._kept._arguments(0)
        arguments.stamps = self.stamps.data_ptr()
        self.trial.loop._launch = launch_layers(self.library, self.precision, arguments, **constants)

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

    def time(self, replays: int) -> Tensor:
        self.trial.stage(*self.observations[-1][:2])
        return replay_times(self.library, self.trial.loop.launch, replays)


def compare(library: KernelLibrary, policy: Policy, arguments: argparse.Namespace) -> None:
    loop = Loop(library, policy)
    found, times = {}, {}
    for name, constants in policy.builds.items():
        try:
            loop.use(constants)
            cosine, equal = loop.check()
            found[name] = f'{cosine:.6f} {"equal" if equal else "REPETITIONS DIFFER"}'
            times[name] = [loop.time(arguments.replays)]
            print(f'{name} {times[name][0].quantile(0.5):.3f} {found[name]}', file=sys.stderr, flush=True)
        except BackendError as error:
            found[name] = str(error)
    for _ in range(1, arguments.rounds):
        for name, rounds in times.items():
            loop.use(policy.builds[name])
            rounds.append(loop.time(arguments.replays))
    print(f'{policy.family} {policy.precision} H{policy.horizon}: p50 of each round, p99 (ms); cosine')
    for name, text in found.items():
        rounds = times.get(name, [])
        middles = ' '.join(f'{t.quantile(0.5):.3f}' for t in rounds)
        print(f'{name:10s} {middles} {rounds[-1].quantile(0.99):.3f} {text}' if rounds else f'{name} {text}')
    if arguments.timeline in times:
        print(f'{arguments.timeline}: first, median and last block (us)')
        loop.use(policy.builds[arguments.timeline] | {'TIMELINE': LAYERS // 2})
        for line in timeline(loop.trial.loop.launch, loop.stamps):
            print(line)
    sys.stdout.flush()


def compile_all(policies: list[Policy], stamped: str | None) -> None:
    for policy in policies:
        builds = list(policy.builds.values())
        if stamped in policy.builds:
            builds.append(policy.builds[stamped] | {'TIMELINE': LAYERS // 2})
        for constants in builds:
            compile_kernels('expert_layers', '90a', format_constants(policy.precision) | constants)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--replays', type=int, default=120)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--timeline')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('policies_and_builds', nargs='+')
    arguments = parser.parse_args()
    policies = parse(arguments.policies_and_builds)
    if arguments.compile:
        compile_all(policies, arguments.timeline)
        return
    library = KernelLibrary(find_gpu())
    for policy in policies:
        compare(library, policy, arguments)


if __name__ == '__main__':
    main()
