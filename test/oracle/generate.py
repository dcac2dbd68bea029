"""Let lerobot compute pi0 and pi0.5 on random weights, and write down what went in and what came out.

Runs inside the environment that `environment.py` builds; imports nothing of this project.

usage: python generate.py --tokenizer tokenizer.json --out DIRECTORY [--seeds 0 1] [--committed]
       python generate.py --read CHECKPOINT [CHECKPOINT ...]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.processor import PolicyProcessorPipeline, tokenizer_processor
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

VIEWS = ('front', 'wrist', 'side')
JOINTS = ('shoulder', 'elbow', 'wrist_roll', 'left_gripper', 'right_gripper', 'base')
WIDTH = len(JOINTS)
TASKS = (
    'pick up the red cube',
    'Pick_up the fork ',
    'put the yellow sponge into the drawer, close the drawer and then wipe the table with the white towel\n',
    'x',
)
IMAGE_SIZES = ((48, 64), (90, 60), (224, 224), (30, 31))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tokenizer', type=Path, help='tokenizer.json of the checkpoints to make')
    parser.add_argument('--out', type=Path, help='where to make checkpoints with their cases')
    parser.add_argument('--read', type=Path, nargs='*', default=[], help='checkpoints to add cases to')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--committed', action='store_true', help='bf16 weights, few cases, small images')
    arguments = parser.parse_args()
    for directory in arguments.read:
        read(directory)
    for kind in ('pi0', 'pi05') if arguments.out else ():
        for seed in arguments.seeds:
            directory = arguments.out / (f'lerobot_{kind}' if arguments.committed else f'{kind}_{seed}')
            generate(kind, seed, arguments.tokenizer, directory, arguments.committed)


def generate(kind: str, seed: int, tokenizer_json: Path, directory: Path, committed: bool) -> None:
    torch.manual_seed(seed)
    tokenizer = read_tokenizer(tokenizer_json)
    config = make_config(kind, relative=seed % 2 == 1)
    policy = make_policy(kind, config, vocabulary=len(tokenizer))
    before, after = make_processors(kind, config, tokenizer)
    directory.mkdir(parents=True, exist_ok=True)
    save(policy, before, after, directory, committed)
    shutil.copyfile(tokenizer_json, directory / 'tokenizer.json')
    add_cases(policy, before, after, directory, committed)


def read(directory: Path) -> None:
    """Load a checkpoint that somebody else wrote as lerobot does, and add what lerobot makes of it."""
    torch.manual_seed(0)
    tokenizer = read_tokenizer(directory / 'tokenizer.json')
    kind = json.loads((directory / 'config.json').read_text())['type']
    importlib.import_module(f'lerobot.policies.{kind}.processor_{kind}')  # registers configuration and steps
    config = PreTrainedConfig.from_pretrained(directory)
    with safe_open(directory / 'model.safetensors', 'pt') as file:
        vocabulary = file.get_slice('model.paligemma_with_expert.paligemma.lm_head.weight').get_shape()[0]
    with small_sizes(kind, vocabulary) as policy_class:
        policy = policy_class.from_pretrained(directory, config=config, strict=False).eval()
    paligemma = policy.model.paligemma_with_expert.paligemma
    paligemma.model.language_model.embed_tokens.weight = paligemma.lm_head.weight
    overrides = {'tokenizer_processor': {'tokenizer': tokenizer}}
    before = PolicyProcessorPipeline.from_pretrained(
        directory, config_filename='policy_preprocessor.json', overrides=overrides
    )
    after = PolicyProcessorPipeline.from_pretrained(
        directory,
        config_filename='policy_postprocessor.json',
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    add_cases(policy, before, after, directory, committed=True)


def read_tokenizer(path: Path) -> Any:
    special = {'bos_token': '<bos>', 'eos_token': '<eos>', 'pad_token': '<pad>'}
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **special)


def add_cases(policy: Any, before: Any, after: Any, directory: Path, committed: bool) -> None:
    tensors: dict[str, torch.Tensor] = {}
    described = []
    for index, case in enumerate(make_cases(committed)):
        results = run(policy, before, after, case)
        tensors.update({f'{index}.{name}': value.contiguous() for name, value in results.items()})
        described.append(case)
    save_file(tensors, directory / 'cases.safetensors')
    (directory / 'cases.json').write_text(json.dumps(described, indent=1) + '\n')
    print(directory, len(described), 'cases')


def make_cases(committed: bool) -> list[dict[str, Any]]:
    """Every number of views with every prompt length; a view left out in the middle; other steps."""
    if committed:
        return [
            {
                'views': [VIEWS[0], VIEWS[1], VIEWS[2]],
                'task': TASKS[0],
                'steps': 10,
                'sizes': [IMAGE_SIZES[0]] * 3,
            },
            {
                'views': [VIEWS[0], VIEWS[2]],
                'task': TASKS[1],
                'steps': 3,
                'sizes': [IMAGE_SIZES[1], IMAGE_SIZES[3]],
            },
            {'views': [VIEWS[1]], 'task': TASKS[2], 'steps': 1, 'sizes': [IMAGE_SIZES[0]]},
        ]
    cases: list[dict[str, Any]] = [
        {'views': list(VIEWS[:count]), 'task': task, 'steps': 10, 'sizes': list(IMAGE_SIZES[:count])}
        for count in (1, 2, 3)
        for task in TASKS
    ]
    cases.append({'views': ['front', 'side'], 'task': TASKS[0], 'steps': 4, 'sizes': [(480, 640), (30, 31)]})
    return cases


def make_config(kind: str, relative: bool) -> Any:
    module = importlib.import_module(f'lerobot.policies.{kind}.configuration_{kind}')
    visual = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 224, 224))
    inputs = {f'observation.images.{view}': visual for view in VIEWS}
    inputs['observation.state'] = PolicyFeature(type=FeatureType.STATE, shape=(WIDTH,))
    make = module.PI05Config if kind == 'pi05' else module.PI0Config
    return make(
        device='cpu',
        dtype='float32',
        chunk_size=12,
        n_action_steps=12,
        input_features=inputs,
        output_features={'action': PolicyFeature(type=FeatureType.ACTION, shape=(WIDTH,))},
        use_relative_actions=relative,
        action_feature_names=list(JOINTS),
    )


def make_policy(kind: str, config: Any, vocabulary: int) -> Any:
    """lerobot's policy with small sizes and weights that all matter."""
    with small_sizes(kind, vocabulary) as policy_class:
        policy = policy_class(config)
    randomise(policy)
    return policy.eval()


@contextlib.contextmanager
def small_sizes(kind: str, vocabulary: int) -> Iterator[Any]:
    """Gives lerobot's policy class, with its sizes replaced where its module looks them up."""
    module = importlib.import_module(f'lerobot.policies.{kind}.modeling_{kind}')
    sizes = {
        'gemma_2b': module.GemmaConfig(64, 2, 96, 8, 1, 16),
        'gemma_300m': module.GemmaConfig(32, 2, 64, 8, 1, 16),
    }
    module.get_gemma_config = sizes.__getitem__
    paligemma, gemma = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM

    def small_paligemma(config: Any) -> Any:
        vision = config.vision_config
        vision.hidden_size, vision.num_attention_heads = 144, 2  # heads of 72, as the real tower has
        vision.intermediate_size, vision.num_hidden_layers = 80, 2
        vision.projection_dim = config.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = vocabulary
        return paligemma(config=config)

    def small_gemma(config: Any) -> Any:
        config.vocab_size = vocabulary
        return gemma(config=config)

    module.PaliGemmaForConditionalGenerationWithPiGemma = small_paligemma
    module.PiGemmaForCausalLM = small_gemma
    try:
        yield module.PI05Policy if kind == 'pi05' else module.PI0Policy
    finally:
        module.PaliGemmaForConditionalGenerationWithPiGemma = paligemma
        module.PiGemmaForCausalLM = gemma


@torch.no_grad()
def randomise(policy: Any) -> None:
    """All values fit bf16, so that a checkpoint stored in bf16 is exact."""
    for name, parameter in policy.named_parameters():
        vision_norm = 'layer_norm' in name or 'post_layernorm' in name
        if 'norm' in name or name.endswith('bias'):
            parameter.normal_(1.0 if vision_norm and name.endswith('weight') else 0.0, 0.1)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)
        parameter.copy_(parameter.bfloat16())
    paligemma = policy.model.paligemma_with_expert.paligemma
    paligemma.lm_head.weight.copy_(paligemma.model.language_model.embed_tokens.weight)


def make_processors(kind: str, config: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The real pipelines with random statistics. Only where the tokenizer comes from is replaced."""
    module = importlib.import_module(f'lerobot.policies.{kind}.processor_{kind}')
    step = tokenizer_processor.TokenizerProcessorStep
    module.TokenizerProcessorStep = lambda tokenizer_name, **settings: step(tokenizer=tokenizer, **settings)
    statistics = {'observation.state': random_statistics(), 'action': random_statistics()}
    return getattr(module, f'make_{kind}_pre_post_processors')(config, dataset_stats=statistics)


def random_statistics() -> dict[str, torch.Tensor]:
    samples = torch.randn(500, WIDTH) * (0.2 + torch.rand(WIDTH)) + torch.randn(WIDTH)
    samples[:, -1] = 0.25  # a joint that never moved
    quantiles = {
        name: samples.quantile(q, 0) for name, q in (('q01', 0.01), ('q99', 0.99), ('q10', 0.1), ('q90', 0.9))
    }
    extremes = {'min': samples.min(0).values, 'max': samples.max(0).values}
    return {'mean': samples.mean(0), 'std': samples.std(0), **extremes, **quantiles}


def save(policy: Any, before: Any, after: Any, directory: Path, bf16: bool) -> None:
    policy.save_pretrained(directory)
    before.save_pretrained(directory, config_filename='policy_preprocessor.json')
    after.save_pretrained(directory, config_filename='policy_postprocessor.json')
    if bf16:
        path = directory / 'model.safetensors'
        stored = load_file(path)
        unused = 'model.paligemma_with_expert.gemma_expert.lm_head.weight'
        save_file({name: tensor.bfloat16() for name, tensor in stored.items() if name != unused}, path)


@torch.no_grad()
def run(policy: Any, before: Any, after: Any, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One case through the whole of lerobot: raw images, state and task in, actions in robot units out."""
    images = {
        view: torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
        for view, size in zip(case['views'], case['sizes'], strict=True)
    }
    state = torch.randn(WIDTH)
    noise = torch.randn(1, policy.config.chunk_size, policy.config.max_action_dim)
    observation: dict[str, Any] = {'observation.state': state, 'task': case['task']}
    for view, image in images.items():
        observation[f'observation.images.{view}'] = image.permute(2, 0, 1).float() / 255
    batch = before(observation)
    actions = policy.predict_action_chunk(batch, noise=noise, num_steps=case['steps'])
    valid = batch['observation.language.attention_mask'][0].bool()
    resized, _ = policy._preprocess_images(batch)
    results = {
        'state': state,
        'noise': noise[0],
        'tokens': batch['observation.language.tokens'][0][valid],
        'normalized_state': batch['observation.state'][0],
        'network': actions[0],
        'actions': after(actions)[0],
    }
    for view, image, square in zip(case['views'], images.values(), resized, strict=False):
        results[f'image.{view}'] = image
        # The whole square is large; its checksum by rows and columns shows any other pixel.
        results[f'rows.{view}'], results[f'columns.{view}'] = (
            square[0].double().mean(2),
            square[0].double().mean(1),
        )
    return results


if __name__ == '__main__':
    main()
