"""Teaches the nano policy the recorded episode: flow matching for the action expert, everything else frozen.

Only the expert and its heads learn; the random vision and language towers keep their weights, so that the
prefix of every observation is computed once. What comes out follows this one episode and knows nothing else.

Loss and time distribution: openpi `models_pytorch/pi0_pytorch.py` (forward, sample_time) at 15a9616.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashrt_ros.models.gemma import Cache, rotary_table
from flashrt_ros.models.pi import PiModel
from flashrt_ros.models.processing import Processing
from flashrt_ros.policy import Observation

TRAINED = ('expert.', 'action_in_proj.', 'action_out_proj.', 'time_mlp_in.', 'time_mlp_out.')
"""Prefixes of the parameters that learn."""

BATCH, PEAK_RATE, WARM_UP = 16, 2e-3, 100
PADDING_WEIGHT = 0.1
"""Of the columns behind the robot's, which every checkpoint has and nobody executes."""

BETA = (1.5, 1.0)
"""Flow times are drawn from this beta distribution, mostly near 1, where there is noise alone."""


@dataclass(frozen=True)
class Example:
    """An observation, and what followed it: float64 [H, D] commands, rad; row i is due i steps later."""

    observation: Observation
    actions: np.ndarray


@dataclass(frozen=True)
class _Group:
    """Examples whose prompts have the same number of tokens, so that they fit one batch.

    caches: of every layer, keys and values [N, kv_heads, P, D]. actions: fp32 [N, H, padded width].
    """

    caches: list[Cache]
    actions: Tensor


def train(model: PiModel, processing: Processing, examples: Sequence[Example], steps: int, seed: int) -> None:
    """Change the weights of `TRAINED` in place."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    groups = _prepare(model, processing, examples)
    print(f'{len(examples)} examples, {len(groups)} lengths of prefix', flush=True)
    sizes = torch.tensor([float(len(group.actions)) for group in groups])
    parameters = [p for name, p in model.named_parameters() if name.startswith(TRAINED)]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps, pct_start=min(0.3, WARM_UP / steps)
    )
    losses = []
    for step in range(steps):
        group = groups[int(torch.multinomial(sizes, 1, generator=generator))]
        rows = torch.randint(len(group.actions), (BATCH,), generator=generator)
        caches = [(keys[rows].float(), values[rows].float()) for keys, values in group.caches]
        loss = _loss(model, caches, group.actions[rows], processing.actions.width)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 200 == 199:
            print(f'step {step + 1}: loss {np.mean(losses[-200:]):.4f}', flush=True)
    for parameter in parameters:
        parameter.requires_grad_(False)


def _loss(model: PiModel, caches: list[Cache], actions: Tensor, width: int) -> Tensor:
    """Mean square of the flow's error at one random time for each example. width: the robot's columns."""
    noise = torch.randn_like(actions)
    times = torch.distributions.Beta(*BETA).sample((len(actions),)) * 0.999 + 0.001
    share = times[:, None, None]
    flow = batch_velocity(model, caches, share * noise + (1 - share) * actions, times)
    errors = (flow - (noise - actions)).square()
    return errors[..., :width].mean() + PADDING_WEIGHT * errors[..., width:].mean()


def batch_velocity(model: PiModel, caches: list[Cache], noisy: Tensor, times: Tensor) -> Tensor:
    """The flow field for a batch in which every row has a time of its own."""
    # [B, norms, 3, W] -> [norms, 3, B, 1, W], which broadcasts over the tokens of each example.
    modulation = model.conditions(times).permute(1, 2, 0, 3)[..., None, :]
    length = caches[0][0].shape[2]
    rotary = rotary_table(torch.arange(length, length + noisy.shape[1]), model.spec.expert.head_dim)
    return model.velocity(noisy, modulation, caches, rotary)


@torch.no_grad()
def _prepare(model: PiModel, processing: Processing, examples: Sequence[Example]) -> list[_Group]:
    """Prefix and normalised actions of every example, sorted by the length of the prefix."""
    sorted_: dict[int, list[tuple[list[Cache], Tensor]]] = defaultdict(list)
    for example in examples:
        prepared = processing.prepare(example.observation)
        caches = model.prefill(model.see(prepared.images), prepared.tokens)
        actions = np.zeros((model.spec.horizon, model.spec.action_dim), dtype=np.float32)
        actions[:, : example.actions.shape[1]] = processing.actions.normalize(example.actions)
        sorted_[prepared.tokens.shape[1]].append((_halved(caches), torch.from_numpy(actions)))
    return [_stack(items) for items in sorted_.values()]


def _halved(caches: list[Cache]) -> list[Cache]:
    return [(keys.half(), values.half()) for keys, values in caches]


def _stack(items: list[tuple[list[Cache], Tensor]]) -> _Group:
    layers = range(len(items[0][0]))
    caches = [
        (torch.cat([c[layer][0] for c, _ in items]), torch.cat([c[layer][1] for c, _ in items]))
        for layer in layers
    ]
    return _Group(caches, torch.stack([actions for _, actions in items]))
