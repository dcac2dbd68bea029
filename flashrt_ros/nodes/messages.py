"""Between ROS messages and the core's own types."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Duration, Time

from flashrt_ros.control import Chunk, ChunkError
from flashrt_ros.ingest.stream import stamp_ns
from flashrt_ros.msg import ActionChunk

_SECOND = 1_000_000_000


def to_time(nanoseconds: int) -> Time:
    return Time(sec=nanoseconds // _SECOND, nanosec=nanoseconds % _SECOND)


def to_duration(nanoseconds: int) -> Duration:
    return Duration(sec=nanoseconds // _SECOND, nanosec=nanoseconds % _SECOND)


def chunk_to_message(chunk: Chunk, now_ns: int) -> ActionChunk:
    """now_ns: time of publication [ROS time], up to which the delay is counted."""
    message = ActionChunk()
    message.header.stamp = to_time(chunk.observed_ns)
    message.policy = chunk.policy
    message.sequence, message.epoch = chunk.sequence, chunk.epoch
    message.start, message.step = to_time(chunk.start_ns), to_duration(chunk.step_ns)
    message.horizon, message.action_dim = chunk.actions.shape
    message.names = list(chunk.names)
    message.kinds = [ActionChunk.JOINT_POSITION] * len(chunk.names)
    message.data = chunk.actions.astype(np.float32).ravel().tolist()
    message.delay = chunk.rows_due(now_ns)
    return message


def chunk_from_message(message: ActionChunk) -> Chunk:
    """Raises ChunkError for sizes that contradict each other, unsupported kinds, or bad values."""
    where = f"chunk {message.sequence} of '{message.policy}'"
    rows, columns = message.horizon, message.action_dim
    if len(message.data) != rows * columns or len(message.kinds) != columns:
        raise ChunkError(
            f'{len(message.data)} values and {len(message.kinds)} kinds for {rows} rows of {columns} columns',
            where,
            'send horizon * action_dim values and one kind for each column',
        )
    others = sorted({int(kind) for kind in message.kinds} - {ActionChunk.JOINT_POSITION})
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
