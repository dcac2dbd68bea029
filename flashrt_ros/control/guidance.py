"""What a new chunk is asked to agree with, row by row: real-time chunking's weights.

With horizon H, d rows consumed while the policy thinks and s rows between two inferences (d <= s <= H - d),
the old chunk still covers the first H - s rows of the new one. Row i is asked for with weight

    1                                i < d         executed while the policy thinks: it has to be met
    c * (e^c - 1) / (e - 1)          d <= i < H-s, c = (H-s - i) / (H-s - d + 1)
    0                                i >= H-s      there is no old chunk

Source: arXiv 2506.07339, `real-time-chunking-kinetix/src/model.py` (get_prefix_weights). lerobot's default
'linear' is c itself, and its `execution_horizon` stands where the paper has H - s.
"""

from __future__ import annotations

import math

import numpy as np

SCHEDULES = ('exp', 'linear', 'ones')


def prefix_weights(delay: int, end: int, rows: int, schedule: str) -> np.ndarray:
    """float32 [rows], 0 to 1. delay: rows to be met. end: rows that the old chunk covers, at most."""
    row = np.arange(rows)
    begin, end = min(delay, end), min(end, rows)
    share = np.clip((end - row) / (end - begin + 1), 0.0, 1.0)
    middle = {
        'exp': share * np.expm1(share) / (math.e - 1),
        'linear': share,
        'ones': np.ones(rows),
    }[schedule]
    return np.where(row < begin, 1.0, np.where(row < end, middle, 0.0)).astype(np.float32)
