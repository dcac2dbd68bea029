"""From the core's own types to ROS messages."""

from __future__ import annotations

from array import array

import numpy as np
from builtin_interfaces.msg import Duration, Time

from flashrt_ros.control import Chunk
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
    # Arrays are taken as they are; of lists every value is checked, which takes longer than all the rest.
    message.kinds = array('B', [ActionChunk.JOINT_POSITION] * len(chunk.names))
    message.data = array('f', chunk.actions.astype(np.float32).tobytes())
    message.prefix = chunk.prefix
    message.delay = chunk.rows_due(now_ns)
    return message
