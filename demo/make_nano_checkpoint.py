"""Writes demo/nano_pi05: a pi0.5 checkpoint of the real architecture and files, a few megabytes large.

    tools/in_env python -m demo.make_nano_checkpoint demo/episode demo/nano_pi05

Its statistics are those of the recorded episode. Its weights are random, and then the action expert learns
the episode by heart (see `training`): enough to see the arm do something sensible, and no more.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from demo.training import Example, train
from flashrt_ros.configuration import RobotConfig, load_config
from flashrt_ros.evaluation.bag import Bag, open_bag
from flashrt_ros.evaluation.run import Run, Series, read_run
from flashrt_ros.ingest import Ingest, Taken
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.models.checkpoint import Checkpoint, open_checkpoint
from flashrt_ros.models.pi import PiModel, canonical_name, load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.models.writer import Statistics, write_checkpoint
from flashrt_ros.policy import PolicyOptions, load_policy

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bag', type=Path)
    parser.add_argument('checkpoint', type=Path, help='directory to write')
    parser.add_argument('--config', type=Path, default=ROOT / 'config/so101.yaml')
    parser.add_argument('--start', type=Path, help='checkpoint to go on from; default: random weights')
    parser.add_argument('--steps', type=int, default=3000, help='of training')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config)
    with open_bag(arguments.bag) as bag:
        recording = read_run(bag, config)
        examples = list(lessons(bag, config, recording.reference))
    if arguments.start is None:
        write(arguments.checkpoint, recording, random_tensors(NANO_PI05, arguments.seed))
    checkpoint = open_checkpoint(arguments.start or arguments.checkpoint)
    model = load_model(checkpoint.spec, checkpoint.tensors, torch.float32)
    train(model, checkpoint.processing, examples, arguments.steps, arguments.seed)
    write(arguments.checkpoint, recording, trained_tensors(checkpoint, model))
    examine(arguments.checkpoint, examples)


def lessons(bag: Bag, config: RobotConfig, commands: Series) -> Iterator[Example]:
    """What the node would have seen at every joint state of the recording, and the commands that followed."""
    ingest = Ingest(config)
    inputs = {camera.topic: view for view, camera in config.cameras.items()}
    inputs[config.joint_states.topic] = STATE
    step_ns = 1e9 / config.rates.action_rate_hz
    for record in bag.records(list(inputs)):
        ingest.offer(inputs[record.topic], bag.decode(record), record.time_ns)
        if inputs[record.topic] != STATE:
            continue
        taken = ingest.observe(record.time_ns)
        if isinstance(taken, Taken):
            due = taken.stamp_ns + step_ns * np.arange(NANO_PI05.horizon)
            rows = np.searchsorted(commands.times_ns, due, side='right') - 1
            yield Example(taken.observation, commands.values[np.maximum(rows, 0)])


def write(path: Path, recording: Run, tensors: Mapping[str, torch.Tensor]) -> None:
    """The checkpoint in openpi's format, bf16 as published ones are."""
    state, actions = Statistics.of(recording.measured.values), Statistics.of(recording.reference.values)
    write_checkpoint(path, NANO_PI05, tensors, state, actions, format='openpi', dtype=torch.bfloat16)
    size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
    print(f'{path}: {size / 1e6:.2f} MB')


def trained_tensors(checkpoint: Checkpoint, model: PiModel) -> dict[str, torch.Tensor]:
    """All tensors by canonical name: the model's, and as they were those that inference does not touch."""
    trained = {canonical_name(name): tensor for name, tensor in model.state_dict().items()}
    # Copied, because the file that they are mapped from is about to be written.
    return {
        name: trained[name] if name in trained else checkpoint.tensors[name].clone()
        for name in checkpoint.tensors
    }


def examine(path: Path, examples: list[Example]) -> None:
    """Print how far the policy is from what it was taught."""
    policy = load_policy(path, PolicyOptions(seed=0))
    errors = [
        np.abs(policy.infer(example.observation).actions - example.actions).mean(0)
        for example in examples[:: max(1, len(examples) // 40)]
    ]
    print('mean error of a row by joint [rad]:', np.mean(errors, 0).round(3).tolist())


if __name__ == '__main__':
    main()
