"""Trains the small pi0.5 on demonstrations, validates it, and writes the checkpoint.

    python -m training.train data checkpoint --steps 20000 --minutes 10

Data and pictures stay on the GPU. Of every observation the flow is learned at several times at once, since
the observation itself costs most. The checkpoint holds the running mean of the weights; it is written every
so often, so that a run that is cut short leaves one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.models.gemma import RMSNorm
from flashrt_ros.models.pi import PiModel, canonical_name, load_model
from flashrt_ros.models.small_tokenizer import write_small_tokenizer
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import expected_tensors
from flashrt_ros.models.tokenizer import load_tokenizer
from flashrt_ros.models.writer import write_checkpoint
from training.augment import to_square, vary
from training.dataset import Moments, read_shard
from training.flow import draw_prefixes, draw_times, loss, prefill
from training.recipe import SPEC, TRAINED_PREFIX, Norms, Prompts, relative

WARM_UP, WEIGHT_DECAY, EMA = 500, 0.02, 0.999
STATE_NOISE = 0.01
"""rad, added to the state, so that it is not trusted more than the pictures."""

VALIDATION_SHARE = 50
"""Every so many episodes one is kept for validation."""


@dataclass(frozen=True)
class Options:
    """draws: flow times for each observation. minutes: at the latest by then it ends."""

    steps: int
    minutes: float
    batch: int
    draws: int
    rate: float
    seed: int
    compile: bool


class Data:
    """Moments on the device, ready to be drawn from."""

    def __init__(
        self, moments: Moments, norms: Norms, prompts: Prompts, device: str, spec: PolicySpec
    ) -> None:
        self.pictures = torch.from_numpy(moments.pictures).to(device)
        self.states = torch.from_numpy(moments.state).to(device)
        actions = norms.action_range.normalize(relative(moments.chunk, moments.state))
        self.actions = torch.zeros(*actions.shape[:2], spec.action_dim, device=device)
        self.actions[..., : actions.shape[2]] = torch.from_numpy(actions.astype(np.float32)).to(device)
        distance = torch.tensor(norms.action_range.distance, dtype=torch.float32, device=device)
        self._per_rad = 2 / distance[:5]
        self._prompts, self._size = prompts, spec.vision.image_size

    def __len__(self) -> int:
        return len(self.states)

    def batch(self, rows: Tensor, varied: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, V, 3, S, S], tokens [B, T], normalised actions [B, H, A]."""
        pictures = self.pictures[rows]
        flat = pictures.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        images = to_square(vary(flat) if varied else flat, self._size).unflatten(0, pictures.shape[:2])
        states, actions = self.states[rows], self.actions[rows]
        if varied:
            noise = torch.randn_like(states) * STATE_NOISE
            states, actions = states + noise, actions.clone()
            actions[..., :5] -= (noise[:, :5] * self._per_rad)[:, None]
        return images, self._prompts(states), actions


def begin(checkpoint: Path | None) -> PiModel:
    """A fresh network, or that of a checkpoint, on the CPU."""
    if checkpoint is None:
        model = PiModel(SPEC)
        initialise(model)
        return model
    return load_model(SPEC, open_checkpoint(checkpoint).tensors, torch.float32).train().requires_grad_(True)


def initialise(model: PiModel) -> None:
    """Linear layers by fan-in, the last of each branch small; modulations and norms change nothing yet."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5 * (0.3 if name.endswith(LAST) else 1.0))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith('.dense'):
                nn.init.zeros_(module.weight)
                width = len(module.bias) // 3
                module.bias.data[2 * width :] = (
                    0.0 if name.endswith('norm.dense') and '.layers.' not in name else 1.0
                )
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
        elif isinstance(module, RMSNorm):
            nn.init.zeros_(module.weight)


LAST = ('o_proj', 'down_proj', 'out_proj', 'fc2')


def read(folder: Path, processes: int) -> Moments:
    paths = sorted(folder.glob('*.npz'))
    with ProcessPoolExecutor(processes) as pool:
        parts = list(pool.map(read_shard, paths))
    return Moments(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Moments))
    )


def learning(
    model: PiModel, data: Data, options: Options, width: int, device: str
) -> Iterator[tuple[int, float, PiModel, float]]:
    """Train; yields step, progress (1 at the end), the model of mean weights, and the mean loss since."""
    cuda = device == 'cuda'
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': WEIGHT_DECAY}, {'params': others, 'weight_decay': 0.0}],
        lr=options.rate,
        betas=(0.9, 0.95),
        fused=cuda,
    )
    mean = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA)
    )
    step_loss: Callable[..., Tensor] = partial(loss, model, width=width)
    if options.compile:
        step_loss = torch.compile(step_loss)
    began, total, counted = time.monotonic(), torch.zeros((), device=device), 0
    draw_batch = torch.compile(data.batch) if options.compile else data.batch
    for step in range(options.steps + 1):
        progress = max(step / options.steps, (time.monotonic() - began) / 60 / options.minutes)
        if step and (step % 1000 == 0 or progress >= 1):
            yield step, progress, mean.module, float(total) / counted
            total.zero_()
            counted = 0
        if progress >= 1:
            return
        rate = (
            options.rate
            * min(1.0, (step + 1) / WARM_UP)
            * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        )
        for group in optimizer.param_groups:
            group['lr'] = rate
        images, tokens, actions = draw_batch(torch.randint(len(data), (options.batch,), device=device), True)
        count = options.batch * options.draws
        noise = torch.randn(count, *actions.shape[1:], device=device)
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            value = step_loss(
                images,
                tokens,
                actions,
                noise,
                draw_times(count, device),
                draw_prefixes(count, TRAINED_PREFIX, device),
            )
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean.update_parameters(model)
        total += value.detach()
        counted += 1


@torch.no_grad()
def validate(model: PiModel, data: Data, norms: Norms) -> dict[str, float]:
    """Mean absolute error of predicted chunks [rad], of arm and gripper, in the first half of the rows."""
    half, table, errors = model.spec.horizon // 2, model.flow_table(model.spec.steps), []
    for rows in torch.arange(min(len(data), 1024), device=data.states.device).split(64):
        images, tokens, actions = data.batch(rows, False)
        caches = prefill(model, images, tokens)
        noise = torch.randn(actions.shape, device=actions.device)
        errors.append((model.denoise(noise, caches, table) - actions).abs()[:, :half, :6].mean((0, 1)).cpu())
    rad = torch.stack(errors).mean(0).numpy() * norms.action_range.distance / 2
    return {'arm_rad': float(rad[:5].mean()), 'gripper_rad': float(rad[5])}


def export(path: Path, model: PiModel, norms: Norms) -> None:
    """openpi's format, bf16. What inference never touches (see `load_model`) is written as zeros."""
    trained = {canonical_name(name): tensor for name, tensor in model.state_dict().items()}
    shapes = expected_tensors(model.spec)
    tensors = {
        name: trained[name] if name in trained else torch.zeros(shape) for name, shape in shapes.items()
    }
    write_checkpoint(
        path,
        model.spec,
        tensors,
        norms.state,
        norms.actions,
        dtype=torch.bfloat16,
        trained_prefix=TRAINED_PREFIX,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='folder of shards')
    parser.add_argument('checkpoint', type=Path, help='folder to write')
    parser.add_argument('--start', type=Path, help='checkpoint to go on from, with its statistics')
    parser.add_argument('--steps', type=int, default=20_000)
    parser.add_argument('--minutes', type=float, default=math.inf, help='stop by then at the latest')
    parser.add_argument('--batch', type=int, default=512)
    parser.add_argument('--draws', type=int, default=4)
    parser.add_argument('--rate', type=float, default=1e-3)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--processes', type=int, default=1, help='that unpack pictures')
    parser.add_argument('--no-compile', action='store_true')
    arguments = parser.parse_args()
    device = arguments.device
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision('high')
    began = time.monotonic()
    moments = read(arguments.data, arguments.processes)
    kept = moments.seed % VALIDATION_SHARE == 0
    norms = Norms.read(arguments.start) if arguments.start else Norms.of(moments.state, moments.chunk)
    arguments.checkpoint.mkdir(parents=True, exist_ok=True)
    write_small_tokenizer(arguments.checkpoint / 'tokenizer.json')
    prompts = Prompts(load_tokenizer(None, arguments.checkpoint, SPEC.vocab), norms, device)
    train, validation = (Data(moments.where(part), norms, prompts, device, SPEC) for part in (~kept, kept))
    print(f'{len(train)} + {len(validation)} moments ({time.monotonic() - began:.0f} s)', flush=True)
    model = begin(arguments.start).to(device)
    options = Options(
        arguments.steps,
        arguments.minutes,
        arguments.batch,
        arguments.draws,
        arguments.rate,
        arguments.seed,
        not arguments.no_compile,
    )
    curve = []
    for step, progress, mean, value in learning(model, train, options, 6, device):
        row = {'step': step, 'minutes': (time.monotonic() - began) / 60, 'loss': value}
        if step % 2000 == 0 or progress >= 1:
            row |= validate(mean, validation, norms)
            export(arguments.checkpoint, mean, norms)
        curve.append(row)
        (arguments.checkpoint / 'curve.json').write_text(json.dumps(curve, indent=1) + '\n')
        print(json.dumps(row), flush=True)


if __name__ == '__main__':
    main()
