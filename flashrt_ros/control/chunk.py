"""A chunk of actions on the time grid: row i is due at start + i * step. A Chunk that exists is valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flashrt_ros.errors import FlashRTError


class ChunkError(FlashRTError):
    """A chunk that nobody may execute: not finite, misshaped, or for other joints."""


@dataclass(frozen=True)
class Chunk:
    """names: [D] joints. actions: float64 [H, D], rad or m. observed_ns: stamp of the oldest input.

    start_ns: when row 0 is due. step_ns: between rows. sequence: counts the chunks of one epoch.
    epoch: grows with every reset of the policy. prefix: rows at the front that were frozen to the chunk
    before.
    """

    policy: str
    names: tuple[str, ...]
    actions: np.ndarray
    observed_ns: int
    start_ns: int
    step_ns: int
    epoch: int
    sequence: int
    prefix: int = 0

    def __post_init__(self) -> None:
        where = f"chunk {self.sequence} of '{self.policy}'"
        if self.actions.ndim != 2 or self.actions.shape[0] == 0 or self.actions.shape[1] != len(self.names):
            shape = ' x '.join(map(str, self.actions.shape))
            raise ChunkError(f'{shape} values for {len(self.names)} joints', where, 'send one row per step')
        if len(set(self.names)) != len(self.names):
            raise ChunkError('a joint is named twice', where, 'name every column once')
        if self.step_ns <= 0:
            raise ChunkError(
                f'the step of {self.step_ns} ns is not positive', where, 'send rows forward in time'
            )
        if not np.isfinite(self.actions).all():
            row, column = np.argwhere(~np.isfinite(self.actions))[0]
            value, joint = self.actions[row, column], self.names[column]
            raise ChunkError(
                f"row {row} of joint '{joint}' is {value}", where, 'check the checkpoint and its input'
            )

    @property
    def horizon(self) -> int:
        return int(self.actions.shape[0])

    @property
    def length_ns(self) -> int:
        """Time that the chunk covers: its last row stays valid for one step."""
        return self.horizon * self.step_ns

    def rows_due(self, now_ns: int) -> int:
        """Rows whose time has come: the delay, counted on the grid."""
        return min(max(0, (now_ns - self.start_ns) // self.step_ns), self.horizon)

    def with_actions(self, actions: np.ndarray) -> Chunk:
        """The same chunk with other values, float64 [H, D]."""
        return replace(self, actions=actions)

    def on_grid(self, start_ns: int, step_ns: int) -> np.ndarray:
        """float64 [R, D]: this chunk at start + i * step, along the line between its rows, while it lasts.

        R is 0 where nothing of it is left. A chunk whose grid is the same by whole steps gives its own rows.
        """
        first, last = start_ns - self.start_ns, (self.horizon - 1) * self.step_ns
        count = (last - first) // step_ns + 1
        if count <= 0:
            return np.zeros((0, len(self.names)))
        positions = np.maximum(0, first + np.arange(count) * step_ns)
        row, into = np.divmod(positions, self.step_ns)
        after = np.minimum(row + 1, self.horizon - 1)
        share = (into / self.step_ns)[:, None]
        return self.actions[row] + share * (self.actions[after] - self.actions[row])

    def for_joints(self, names: Sequence[str]) -> Chunk:
        """The same chunk with its columns in another order. Raises ChunkError for other joints."""
        if tuple(names) == self.names:
            return self
        if set(names) != set(self.names):
            raise ChunkError(
                f'it is for the joints {", ".join(self.names)}',
                f"chunk {self.sequence} of '{self.policy}'",
                f'give both nodes the same configuration; this one drives {", ".join(names)}',
            )
        columns = [self.names.index(name) for name in names]
        return replace(self, names=tuple(names), actions=self.actions[:, columns])
