"""The sentence that a checkpoint was trained to read, and its token ids.

Three forms exist. `state` is pi0.5's: the normalised state, cut into 256 bins, stands in the sentence.
`plain` is pi0's, and that of pi0.5 checkpoints trained without discretised state (pi05_libero): the task and
a newline. lerobot writes `plain` without cleaning the task. A prompt is given in pieces because openpi
tokenises its newline by itself.

Source: openpi `models/tokenizer.py` at 15a9616; lerobot 0.6.1 `policies/{pi0,pi05}/processor_*.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashrt_ros.errors import ObservationError
from flashrt_ros.models.tokenizer import Tokenizer

FORMS = ('state', 'plain')
"""What a user may choose from; `lerobot_plain` follows from the format."""

BIN_EDGES = np.linspace(-1, 1, 257)[:-1]
"""Lower edges of the 256 bins that a normalised state value falls into."""


def prompt_pieces(form: str, task: str, state: np.ndarray) -> tuple[str, ...]:
    """Task and normalised, unpadded state [D] -> the text, in the pieces that are tokenised separately."""
    if form == 'state':
        values = ' '.join(str(value) for value in state_bins(state))
        return (f'Task: {clean(task)}, State: {values};\nAction: ',)
    if form == 'plain':
        return clean(task), '\n'
    return (task if task.endswith('\n') else task + '\n',)


def state_bins(state: np.ndarray) -> np.ndarray:
    """Normalised state [D] -> bins int64 [D]: 0 to 255 in [-1, 1), 255 above, -1 below; never clipped."""
    return np.digitize(state, BIN_EDGES) - 1


def clean(task: str) -> str:
    return task.strip().replace('_', ' ').replace('\n', ' ')


def encode_prompt(tokenizer: Tokenizer, pieces: Sequence[str], limit: int) -> list[int]:
    """Token ids, bos first. Raises ObservationError if there are more than `limit`: nothing is cut off."""
    tokens = [tokenizer.bos, *(token for piece in pieces for token in tokenizer.encode(piece))]
    if len(tokens) > limit:
        raise ObservationError(
            f'the prompt is {len(tokens)} tokens long, and this checkpoint takes at most {limit}',
            f"prompt '{''.join(pieces)}'",
            'shorten the task',
        )
    return tokens
