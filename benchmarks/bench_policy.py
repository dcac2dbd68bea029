"""Latency of the whole graph and of its stages, beside the roofline and what a user would run without the
engine.

usage: python -m benchmarks [--family pi05 pi0] [--precision fp8 bf16] [--views 1 2 3] [--horizon 10 50]
       [--tokens 50 200] [--replays 200] [--no-baselines] [--no-compile]
       [--output benchmarks/results/NAME.json]

Without options it measures all of that, which takes about ten minutes, half of them torch.compile's.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ceilings, describe, median_ms
from benchmarks.policies import SPECS, PolicyFactory, observations
from benchmarks.roofline import floors
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.engine import Engine
from flashrt_ros.models.pi import load_model

Record = dict[str, object]
Part = Callable[..., Any]


def percentile(ordered: list[float], fraction: float) -> float:
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def time_replays(engine: Engine, replays: int) -> tuple[list[float], dict[str, float]]:
    """Milliseconds of each replay, from events around the graph, ascending; and the median of each stage.

    Noise is written anew before each replay.
    """
    times, stages = [], []
    noise = engine.denoise.actions.clone().normal_()
    for i in range(replays + 10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(engine.stream):
            engine.denoise.actions.copy_(noise)
            start.record()
            engine.replay()
            end.record()
        end.synchronize()
        if i >= 10:
            times.append(start.elapsed_time(end))
            stages.append(engine.stage_seconds())
    medians = {f'{stage}_ms': percentile(sorted(s[stage] for s in stages), 0.5) * 1e3 for stage in stages[0]}
    return sorted(times), medians


def measure(
    engine: Engine, precision: str, tokens: int, replays: int, ceilings: Mapping[str, float]
) -> Record:
    """One record of an engine at a prompt length, with all its views present."""
    spec, views = engine.spec, engine.views
    engine.write(*observations(spec, views, tokens, 1)[0])
    times, stages = time_replays(engine, replays)
    if not torch.isfinite(engine.read()).all():
        raise SystemExit(f'{spec.family} {precision}: the actions are not finite')
    roofline = sum(floors(spec, precision, views, spec.horizon, tokens, ceilings).values())
    return {
        'model': spec.family,
        'implementation': 'engine',
        'precision': precision,
        'views': views,
        'horizon': spec.horizon,
        'tokens': tokens,
        'replays': replays,
        'p50_ms': percentile(times, 0.5),
        'p90_ms': percentile(times, 0.9),
        'p99_ms': percentile(times, 0.99),
        **stages,
        'roofline_ms': roofline,
        'times_roofline': percentile(times, 0.5) / roofline,
    }


@torch.inference_mode()
def baselines(factory: PolicyFactory, family: str, views: int, tokens: int, compiled: bool) -> list[Record]:
    """The plain model in bf16: eager, captured in one graph, and compiled."""
    spec = factory.spec
    model = load_model(spec, factory.tensors, torch.bfloat16)
    images, words, state, noise = (x.cuda() for x in observations(spec, views, tokens, 1)[0])
    table = model.flow_table(spec.steps)

    def run(
        see: Part = model.see, prefill: Part = model.prefill, denoise: Part = model.denoise
    ) -> torch.Tensor:
        return denoise(noise[None], prefill(see(images), words[None], state[None]), table)

    common = {'model': family, 'precision': 'bf16', 'views': views, 'horizon': spec.horizon, 'tokens': tokens}
    times = {'plain eager': median_ms(run, 10)}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times['plain in a CUDA graph'] = median_ms(graph.replay, 20)
    # The loop over the steps stays in Python: compiled as a whole it takes minutes, and is no faster.
    if compiled:
        setattr(model, 'velocity', torch.compile(model.velocity))  # noqa: B010
        parts = [torch.compile(part) for part in (model.see, model.prefill)]
        times['torch.compile'] = median_ms(lambda: run(*parts), 10)
    return [{**common, 'implementation': name, 'p50_ms': time} for name, time in times.items()]


def show(record: Record) -> None:
    figures = ' '.join(f'{key[:-3]} {value:.3f}' for key, value in record.items() if key.endswith('_ms'))
    setting = f'{record["views"]} views H{record["horizon"]} {record["tokens"]} tokens'
    print(
        f'{record["model"]:5} {record["implementation"]:22} {record["precision"]} {setting}: {figures}',
        flush=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--family', nargs='+', default=list(SPECS), choices=SPECS)
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'], choices=['fp8', 'bf16'])
    for name, default in (('views', [1, 2, 3]), ('horizon', [10, 50]), ('tokens', [50, 200])):
        parser.add_argument(f'--{name}', nargs='+', type=int, default=default)
    parser.add_argument('--replays', type=int, default=200)
    parser.add_argument('--no-baselines', action='store_true', help='not the plain model')
    parser.add_argument('--no-compile', action='store_true', help='not torch.compile, which takes minutes')
    parser.add_argument('--untimed', action='store_true', help='without events between the stages')
    parser.add_argument('--output', type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    machine, reached = describe(), ceilings()
    records: list[Record] = []
    print(json.dumps(machine), json.dumps(reached))

    def keep(record: Record) -> None:
        records.append(record)
        show(record)

    for family in arguments.family:
        factory = PolicyFactory(KernelLibrary(find_gpu()), family)
        for setting in itertools.product(arguments.precision, arguments.views, arguments.horizon):
            engine = factory.engine(*setting, timed=not arguments.untimed)
            for tokens in arguments.tokens:
                keep(measure(engine, setting[0], tokens, arguments.replays, reached))
            del engine
            gc.collect()
        if not arguments.no_baselines:
            for record in baselines(factory, family, 2, 50, not arguments.no_compile):
                keep(record)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        report = {'machine': machine, 'ceilings': reached, 'records': records}
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
