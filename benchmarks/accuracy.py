"""Engine against the fp32 plain model at full size: relative error and cosine of what the flow steps add.

usage: python -m benchmarks.accuracy [--family pi05] [--precision bf16 fp8] [--observations 20]
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

from benchmarks.policies import SPECS, Observed, PolicyFactory, observations
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.engine import Engine
from flashrt_ros.models.pi import PiModel, load_model

Stages = dict[str, Tensor]


@torch.inference_mode()
def run_model(model: PiModel, observed: Observed, steps: int) -> Stages:
    """Projected features, keys and values of the last layer but one, and actions minus noise, all fp32."""
    images, tokens, state, noise = (x.cuda() for x in observed)
    features = model.see(images)
    prefix = model.prefill(features, tokens[None], state[None])
    actions = model.denoise(noise[None], prefix, model.flow_table(steps))[0]
    rows = features.shape[1] + tokens.shape[0]
    cache = torch.cat([t[0, 0, :rows].float() for t in prefix[-2]])
    return {'features': features[0].float(), 'cache': cache, 'actions': actions - noise}


def run_engine(engine: Engine, observed: Observed) -> Stages:
    """The same stages, read from the engine's buffers after a replay."""
    engine.write(*observed)
    engine.replay()
    actions = engine.read().cuda() - observed[3].cuda()
    views, rows = observed[0].shape[0], int(engine.cache.length)
    projector, features = engine.vision.projector, engine.vision.output(views).float()
    if projector.channel_scale is not None:
        features = features * projector.channel_scale
    cache = torch.cat([t[-2, :rows].float() for t in (engine.cache.keys, engine.cache.values)])
    return {
        'features': features if projector.bias is None else features + projector.bias,
        'cache': cache,
        'actions': actions,
    }


def compare(found: Stages, expected: Stages) -> dict[str, float]:
    """Relative error of each stage, and the cosine of the actions' change."""
    errors = {name: float((found[name] - x).norm() / x.norm()) for name, x in expected.items()}
    a, b = found['actions'].double().flatten(), expected['actions'].double().flatten()
    return errors | {'cosine': float(torch.nn.functional.cosine_similarity(a, b, dim=0))}


def summarise(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean error of each stage, worst and mean cosine."""
    summary = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return summary | {
        'worst_actions': max(r['actions'] for r in rows),
        'worst_cosine': min(r['cosine'] for r in rows),
    }


def measure(
    family: str, precisions: list[str], count: int, views: int = 2, tokens: int = 50
) -> dict[str, dict[str, float]]:
    """One summary for the plain model in bf16 and one for the engine in each precision."""
    factory = PolicyFactory(KernelLibrary(find_gpu()), family)
    spec = factory.spec
    observed = observations(spec, views, tokens, count, seed=99)
    model = load_model(spec, factory.tensors, torch.float32)
    expected = [run_model(model, o, spec.steps) for o in observed]
    del model
    plain = load_model(spec, factory.tensors, torch.bfloat16)
    report = {
        'plain bf16': summarise(
            [compare(run_model(plain, o, spec.steps), e) for o, e in zip(observed, expected, strict=True)]
        )
    }
    del plain
    for precision in precisions:
        engine = factory.engine(precision, views)
        report[f'engine {precision}'] = summarise(
            [compare(run_engine(engine, o), e) for o, e in zip(observed, expected, strict=True)]
        )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', default='pi05', choices=SPECS)
    parser.add_argument('--precision', nargs='+', default=['bf16', 'fp8'])
    parser.add_argument('--observations', type=int, default=20)
    arguments = parser.parse_args()
    report = measure(arguments.family, arguments.precision, arguments.observations)
    for name, summary in report.items():
        print(name, json.dumps({key: float(f'{value:.6g}') for key, value in summary.items()}))


if __name__ == '__main__':
    main()
