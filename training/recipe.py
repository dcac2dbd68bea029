"""What the small policy is: its sizes, its words, and how its states and actions are normalised.

pi0.5 writes the state into the prompt, as numbers from 0 to 255. The statistics are widened so that every
joint's number has three digits: all prompts then have the same length, and each digit its place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flashrt_ros.models.normalize import Range
from flashrt_ros.models.openpi import find_statistics
from flashrt_ros.models.prompt import encode_prompt, prompt_pieces
from flashrt_ros.models.spec import GemmaSpec, PolicySpec, VisionSpec
from flashrt_ros.models.tokenizer import Tokenizer
from flashrt_ros.models.writer import Statistics
from flashrt_ros.simulation.prompts import PICK_AND_PLACE
from training.dataset import HORIZON, SIZE

SPEC = PolicySpec(
    'pi05',
    VisionSpec(layers=3, width=288, heads=4, mlp=576, image_size=SIZE),
    GemmaSpec(layers=3, width=256, mlp=768, head_dim=64),
    GemmaSpec(layers=3, width=192, mlp=512, head_dim=64),
    vocab=2048,
    horizon=HORIZON,
)
"""7.9 million parameters; widths that every kernel of the engine takes, fp8 included."""

TRAINED_PREFIX = 6
"""Rows of a chunk that may be frozen: 0.3 s."""

RELATIVE = 5
"""The arm's joints are predicted relative to the state, the gripper as it is."""

LOWEST, HIGHEST = 108, 248
"""Numbers in the prompt of the least and the greatest state in the data."""


@dataclass(frozen=True)
class Norms:
    """The statistics of a data set as they go into the checkpoint, and their formulas."""

    state: Statistics
    actions: Statistics

    @classmethod
    def of(cls, states: np.ndarray, chunks: np.ndarray) -> Norms:
        """states: [N, 6]. chunks: absolute [N, H, 6]."""
        low, high = np.quantile(states, (0.0005, 0.9995), axis=0).astype(np.float64)
        unit = (high - low) / (HIGHEST - LOWEST)
        state = replace(Statistics.of(states), q01=low - LOWEST * unit, q99=high + (256 - HIGHEST) * unit)
        return cls(state, Statistics.of(relative(chunks, states).reshape(-1, chunks.shape[-1])))

    @classmethod
    def read(cls, checkpoint: Path) -> Norms:
        """Those of a checkpoint that `train` has written."""
        stored = json.loads(find_statistics(checkpoint, None).read_text())['norm_stats']

        def group(name: str) -> Statistics:
            found = {key: np.array(values) for key, values in stored[name].items()}
            return Statistics(**found, min=found['q01'], max=found['q99'])

        return cls(group('state'), group('actions'))

    @property
    def state_range(self) -> Range:
        return Range.openpi(self.state.q01, self.state.q99)

    @property
    def action_range(self) -> Range:
        return Range.openpi(self.actions.q01, self.actions.q99)


def relative(chunks: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Absolute chunks [N, H, 6] -> as the network gives them, before normalising."""
    changed = chunks.astype(np.float64)
    changed[..., :RELATIVE] -= states[:, None, :RELATIVE]
    return changed


class Prompts:
    """States -> token ids of the whole prompt, on the device, for a batch."""

    def __init__(self, tokenizer: Tokenizer, norms: Norms, device: torch.device | str) -> None:
        def tokens(number: int) -> Tensor:
            state = np.full(6, (number + 0.5) / 128 - 1)
            return torch.tensor(encode_prompt(tokenizer, prompt_pieces('state', PICK_AND_PLACE, state), 200))

        self._template = tokens(111).to(device)
        self._places = torch.nonzero(tokens(111) != tokens(222))[:, 0].to(device)
        place = self._places[0]
        self._digits = torch.stack([tokens(100 + 11 * digit)[place + 1] for digit in range(10)]).to(device)
        reached = norms.state_range
        self._low = torch.tensor(reached.low, dtype=torch.float32, device=device)
        self._distance = torch.tensor(reached.distance, dtype=torch.float32, device=device)

    def __call__(self, states: Tensor) -> Tensor:
        """fp32 [B, 6] -> int64 [B, T]."""
        numbers = ((states - self._low) / self._distance * 256).long().clamp(100, 255)
        digits = torch.stack([numbers // 100, numbers // 10 % 10, numbers % 10], -1).flatten(1)
        tokens = self._template.repeat(len(states), 1)
        tokens[:, self._places] = self._digits[digits]
        return tokens
