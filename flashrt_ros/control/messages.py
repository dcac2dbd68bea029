"""Reading chunks off the wire, by the fields of a flashrt_ros/ActionChunk, whichever library decoded it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flashrt_ros.control.chunk import Chunk, ChunkError
from flashrt_ros.control.kinds import ActionKinds
from flashrt_ros.ingest.stream import stamp_ns

KIND_NAMES = {0: 'position', 3: 'delta', 4: 'step', 7: 'gripper'}
"""ActionChunk's constants for the kinds that can be executed -> our names for them."""

Anchor = Callable[[int], 'np.ndarray | None']
"""Time [ROS time, ns] -> measured positions then, float64 [D] in the order of the joints; None if unknown."""


def chunk_from_message(
    message: Any,
    joints: tuple[str, ...] | None = None,
    ranges: ActionKinds | None = None,
    anchor: Anchor | None = None,
) -> Chunk:
    """A chunk of absolute positions, its columns as in the message, or in the order of `joints`.

    ranges: closed and opened ends of grippers, in the order of `joints`. anchor: what offsets are added to.
    Raises ChunkError for sizes that contradict each other, other joints, kinds that cannot be executed,
    offsets without a measured position, or bad values.
    """
    where = f"chunk {message.sequence} of '{message.policy}'"
    rows, columns = message.horizon, message.action_dim
    if len(message.data) != rows * columns or len(message.kinds) != columns:
        raise ChunkError(
            f'{len(message.data)} values and {len(message.kinds)} kinds for {rows} rows of {columns} columns',
            where,
            'send horizon * action_dim values and one kind for each column',
        )
    kinds = _kinds(message, where)
    chunk = Chunk(
        policy=message.policy,
        names=tuple(message.names),
        actions=np.array(message.data, dtype=np.float64).reshape(rows, columns),
        observed_ns=stamp_ns(message.header.stamp),
        start_ns=stamp_ns(message.start),
        step_ns=stamp_ns(message.step),
        epoch=message.epoch,
        sequence=message.sequence,
        prefix=message.prefix,
    )
    ordered = chunk if joints is None else chunk.for_joints(joints)
    if set(kinds) == {'position'}:
        return ordered
    kind_of = dict(zip(chunk.names, kinds, strict=True))
    return _as_positions(ordered, [kind_of[name] for name in ordered.names], ranges, anchor, where)


def _kinds(message: Any, where: str) -> list[str]:
    others = sorted({int(kind) for kind in message.kinds} - set(KIND_NAMES))
    if others:
        raise ChunkError(
            f'actions of kind {others[0]} are not supported',
            where,
            'send joint positions, offsets, or gripper openings',
        )
    return [KIND_NAMES[int(kind)] for kind in message.kinds]


def _as_positions(
    chunk: Chunk, kinds: list[str], ranges: ActionKinds | None, anchor: Anchor | None, where: str
) -> Chunk:
    if ranges is None:
        raise ChunkError(
            'it holds offsets or gripper openings', where, 'read it with the ranges of the robot'
        )
    own = ranges.with_kinds(kinds)
    unbounded = [
        name
        for name, kind, closed, opened in zip(chunk.names, kinds, own.closed, own.opened, strict=True)
        if kind == 'gripper' and closed >= opened
    ]
    if unbounded:
        raise ChunkError(
            f"the gripper '{unbounded[0]}' has no range", where, 'give its position_min and position_max'
        )
    measured = anchor(chunk.observed_ns) if anchor is not None and own.relative else None
    if own.relative and measured is None:
        raise ChunkError(
            'it holds offsets, and no joint state of the time of its observation is known',
            where,
            'check joint_states and its stamps',
        )
    base = np.zeros(len(chunk.names)) if measured is None else measured
    return chunk.with_actions(own.to_positions(chunk.actions, base))
