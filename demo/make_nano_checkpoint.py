"""Writes demo/nano_pi05: a pi0.5 checkpoint of the real architecture and files, a few megabytes large.

    python -m demo.make_nano_checkpoint demo/episode demo/nano_pi05

The weights are random; the statistics are those of the recorded episode, so that states are seen and actions
are given in the arm's own range.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from flashrt_ros.evaluation.bag import Bag, open_bag
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.models.writer import Statistics, write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bag', type=Path)
    parser.add_argument('checkpoint', type=Path, help='directory to create')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    with open_bag(arguments.bag) as bag:
        state, actions = Statistics.of(states(bag)), Statistics.of(commands(bag))
    write_checkpoint(
        arguments.checkpoint,
        NANO_PI05,
        random_tensors(NANO_PI05, arguments.seed),
        state,
        actions,
        format='openpi',
        dtype=torch.bfloat16,
    )
    size = sum(file.stat().st_size for file in arguments.checkpoint.rglob('*') if file.is_file())
    print(f'{arguments.checkpoint}: {size / 1e6:.2f} MB')


def states(bag: Bag) -> np.ndarray:
    """float64 [N, 6], rad: the joint positions, in the order of the messages."""
    return np.array([message.position for _, message in bag.messages('/joint_states')])


def commands(bag: Bag) -> np.ndarray:
    """float64 [N, 6], rad: what the controller commanded."""
    return np.array([message.points[0].positions for _, message in bag.messages('/demo/recorded_commands')])


if __name__ == '__main__':
    main()
