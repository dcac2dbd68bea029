"""Reading chunks off the wire, by the fields of a flashrt_ros/ActionChunk, whichever library decoded it."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashrt_ros.control.chunk import Chunk, ChunkError
from flashrt_ros.ingest.stream import stamp_ns


def chunk_from_message(message: Any) -> Chunk:
    """Raises ChunkError for sizes that contradict each other, unsupported kinds, or bad values."""
    where = f"chunk {message.sequence} of '{message.policy}'"
    rows, columns = message.horizon, message.action_dim
    if len(message.data) != rows * columns or len(message.kinds) != columns:
        raise ChunkError(
            f'{len(message.data)} values and {len(message.kinds)} kinds for {rows} rows of {columns} columns',
            where,
            'send horizon * action_dim values and one kind for each column',
        )
    others = sorted({int(kind) for kind in message.kinds} - {message.JOINT_POSITION})
    if others:
        raise ChunkError(
            f'actions of kind {others[0]} are not supported', where, 'send absolute joint positions'
        )
    return Chunk(
        policy=message.policy,
        names=tuple(message.names),
        actions=np.array(message.data, dtype=np.float64).reshape(rows, columns),
        observed_ns=stamp_ns(message.header.stamp),
        start_ns=stamp_ns(message.start),
        step_ns=stamp_ns(message.step),
        epoch=message.epoch,
        sequence=message.sequence,
    )
