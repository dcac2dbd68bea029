"""What the streamer tells the policy about the chunk that it follows, as an ActionChunk on `executing_chunk`.

Its start is when row 0 really counts as due. A message without rows says that no chunk is followed.
"""

from __future__ import annotations

from flashrt_ros.control import Chunk, Entry, chunk_from_message
from flashrt_ros.msg import ActionChunk
from flashrt_ros.nodes.messages import chunk_to_message, to_time


def executing_message(entry: Entry | None, now_ns: int) -> ActionChunk:
    """now_ns: ROS time."""
    if entry is None:
        message = ActionChunk()
        message.header.stamp = to_time(now_ns)
        return message
    message = chunk_to_message(entry.chunk, now_ns)
    message.start = to_time(entry.begin_ns)
    return message


def executing_chunk(message: ActionChunk) -> tuple[Chunk | None, int]:
    """The chunk that is followed, if any, and when its row 0 counts as due [ROS time, ns]."""
    if message.horizon == 0:
        return None, 0
    chunk = chunk_from_message(message)
    return chunk, chunk.start_ns
