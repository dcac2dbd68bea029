"""Let lerobot guide pi0 and pi0.5 chunks (its RTC processor), and write down what went in and what came out.

Runs inside the environment that `environment.py` builds; imports nothing of this project.

usage: python guide.py CHECKPOINT [--out DIRECTORY]     (a checkpoint with cases, as `generate.py` writes)
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import torch
from generate import PreTrainedConfig, read_tokenizer, safe_open, small_sizes
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.processor import PolicyProcessorPipeline
from safetensors.torch import load_file, save_file

CASES = (
    {'delay': 3, 'rows': 8, 'end': 8, 'schedule': 'EXP', 'clip': 10.0},
    {'delay': 0, 'rows': 12, 'end': 10, 'schedule': 'LINEAR', 'clip': 5.0},
    {'delay': 5, 'rows': 7, 'end': 12, 'schedule': 'ONES', 'clip': 1.0},
)
"""delay, execution horizon ('end') and schedule as lerobot takes them; rows left over of the chunk before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('--out', type=Path, help='where to write rtc.safetensors and rtc.json')
    arguments = parser.parse_args()
    directory, out = arguments.checkpoint, arguments.out or arguments.checkpoint
    torch.manual_seed(5)
    policy, before = load(directory)
    inputs = load_file(directory / 'cases.safetensors')
    described = json.loads((directory / 'cases.json').read_text())
    results, cases = {}, []
    for index, settings in enumerate(CASES):
        source = index % len(described)
        given = described[source]
        left_over = torch.randn(settings['rows'], inputs[f'{source}.actions'].shape[-1])
        network = guided(policy, before, inputs, source, given, settings, left_over)
        results |= {f'{index}.left_over': left_over, f'{index}.network': network.contiguous()}
        cases.append({**settings, 'case': source})
    out.mkdir(parents=True, exist_ok=True)
    save_file(results, out / 'rtc.safetensors')
    (out / 'rtc.json').write_text(json.dumps(cases, indent=1) + '\n')
    print(out, len(cases), 'guided cases')


def load(directory: Path) -> tuple[Any, Any]:
    tokenizer = read_tokenizer(directory / 'tokenizer.json')
    kind = json.loads((directory / 'config.json').read_text())['type']
    importlib.import_module(f'lerobot.policies.{kind}.processor_{kind}')
    config = PreTrainedConfig.from_pretrained(directory)
    with safe_open(directory / 'model.safetensors', 'pt') as file:
        vocabulary = file.get_slice('model.paligemma_with_expert.paligemma.lm_head.weight').get_shape()[0]
    with small_sizes(kind, vocabulary) as policy_class:
        policy = policy_class.from_pretrained(directory, config=config, strict=False).eval()
    paligemma = policy.model.paligemma_with_expert.paligemma
    paligemma.model.language_model.embed_tokens.weight = paligemma.lm_head.weight
    before = PolicyProcessorPipeline.from_pretrained(
        directory,
        config_filename='policy_preprocessor.json',
        overrides={'tokenizer_processor': {'tokenizer': tokenizer}},
    )
    return policy.float(), before


@torch.no_grad()
def guided(
    policy: Any,
    before: Any,
    inputs: dict[str, torch.Tensor],
    source: int,
    given: dict[str, Any],
    settings: dict[str, Any],
    left_over: torch.Tensor,
) -> torch.Tensor:
    """Network output [H, width] of one case, with the previous chunk's left-over (normalised) as guide."""
    schedule = RTCAttentionSchedule[settings['schedule']]
    policy.config.rtc_config = RTCConfig(
        prefix_attention_schedule=schedule, max_guidance_weight=settings['clip']
    )
    policy.init_rtc_processor()
    observation: dict[str, Any] = {'observation.state': inputs[f'{source}.state'], 'task': given['task']}
    for view in given['views']:
        image = inputs[f'{source}.image.{view}']
        observation[f'observation.images.{view}'] = image.permute(2, 0, 1).float() / 255
    actions = policy.predict_action_chunk(
        before(observation),
        noise=inputs[f'{source}.noise'][None],
        num_steps=given['steps'],
        inference_delay=settings['delay'],
        prev_chunk_left_over=left_over,
        execution_horizon=settings['end'],
    )
    return actions[0]


if __name__ == '__main__':
    main()
