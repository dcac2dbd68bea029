"""Latency of the whole graph and of its stages, beside what a user would run without the engine.

usage: python -m benchmarks.bench_policy [--family pi05 pi0] [--precision bf16 fp8] [--views 2] [--horizon 50]
       [--tokens 50] [--replays 200] [--baselines] [--compile] [--output benchmarks/results/NAME.json]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
from pathlib import Path

import torch

from benchmarks.machine import ceilings, describe, median_ms
from benchmarks.policies import SPECS, PolicyFactory, observations
from flashrt_ros.engine.device import find_gpu
from flashrt_ros.engine.engine import Engine
from flashrt_ros.engine.library import KernelLibrary
from flashrt_ros.models.pi import load_model

Record = dict[str, object]


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
    factory: PolicyFactory,
    family: str,
    precision: str,
    views: int,
    horizon: int,
    tokens: int,
    replays: int,
    timed: bool,
) -> Record:
    engine = factory.engine(precision, views, horizon, timed)
    spec = engine.spec
    engine.write(*observations(spec, views, tokens, 1)[0])
    times, stages = time_replays(engine, replays)
    if not torch.isfinite(engine.read()).all():
        raise SystemExit(f'{family} {precision}: the actions are not finite')
    return {
        'model': family,
        'implementation': 'engine',
        'precision': precision,
        'views': views,
        'horizon': horizon,
        'tokens': tokens,
        'replays': replays,
        'p50_ms': percentile(times, 0.5),
        'p90_ms': percentile(times, 0.9),
        'p99_ms': percentile(times, 0.99),
        **stages,
    }


@torch.inference_mode()
def baselines(factory: PolicyFactory, family: str, views: int, tokens: int, compiled: bool) -> list[Record]:
    """The plain model in bf16: eager, captured in one graph, and compiled."""
    spec = factory.spec
    model = load_model(spec, factory.tensors, torch.bfloat16)
    images, words, state, noise = (x.cuda() for x in observations(spec, views, tokens, 1)[0])
    table = model.flow_table(spec.steps)

    def run(see=model.see, prefill=model.prefill, denoise=model.denoise):
        return denoise(noise[None], prefill(see(images), words[None], state[None]), table)

    common = {'model': family, 'precision': 'bf16', 'views': views, 'horizon': spec.horizon, 'tokens': tokens}
    records = [{**common, 'implementation': 'plain eager', 'p50_ms': median_ms(run, 10)}]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    records.append(
        {**common, 'implementation': 'plain in a CUDA graph', 'p50_ms': median_ms(graph.replay, 20)}
    )
    if compiled:
        parts = [torch.compile(part) for part in (model.see, model.prefill, model.denoise)]
        records.append(
            {**common, 'implementation': 'torch.compile', 'p50_ms': median_ms(lambda: run(*parts), 10)}
        )
    return records


def show(record: Record) -> None:
    figures = ' '.join(f'{key[:-3]} {value:.3f}' for key, value in record.items() if key.endswith('_ms'))
    setting = f'{record["views"]} views H{record["horizon"]} {record["tokens"]} tokens'
    print(
        f'{record["model"]:5} {record["implementation"]:22} {record["precision"]} {setting}: {figures}',
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', nargs='+', default=list(SPECS), choices=SPECS)
    parser.add_argument('--precision', nargs='+', default=['fp8', 'bf16'])
    for name, default in (('views', [2]), ('horizon', [50]), ('tokens', [50])):
        parser.add_argument(f'--{name}', nargs='+', type=int, default=default)
    parser.add_argument('--replays', type=int, default=200)
    parser.add_argument('--baselines', action='store_true', help='also the plain model, eager and in a graph')
    parser.add_argument('--compile', action='store_true', help='also torch.compile (minutes)')
    parser.add_argument('--untimed', action='store_true', help='without events between the stages')
    parser.add_argument('--output', type=Path)
    arguments = parser.parse_args()
    report = {'machine': describe(), 'ceilings': ceilings(), 'records': []}
    print(json.dumps(report['machine']), json.dumps(report['ceilings']))
    for family in arguments.family:
        factory = PolicyFactory(KernelLibrary(find_gpu()), family)
        grid = itertools.product(arguments.precision, arguments.views, arguments.horizon, arguments.tokens)
        for precision, views, horizon, tokens in grid:
            record = measure(
                factory, family, precision, views, horizon, tokens, arguments.replays, not arguments.untimed
            )
            report['records'].append(record)
            show(record)
            gc.collect()
        if arguments.baselines or arguments.compile:
            for record in baselines(factory, family, 2, 50, arguments.compile):
                report['records'].append(record)
                show(record)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
