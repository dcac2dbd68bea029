"""How actions go out: chunks on one absolute time grid, and the executor that makes bounded commands of them.

Every time is an integer of nanoseconds of ROS time and is passed in; nothing here reads a clock or needs ROS.
"""

from flashrt_ros.control.chunk import Chunk, ChunkError
from flashrt_ros.control.executor import Executor, ExecutorCounts, ExecutorSettings
from flashrt_ros.control.limits import Limits
from flashrt_ros.control.messages import chunk_from_message
from flashrt_ros.control.planner import Plan, Planner
from flashrt_ros.control.timeline import Phase, Timeline

__all__ = [
    'Chunk',
    'ChunkError',
    'Executor',
    'ExecutorCounts',
    'ExecutorSettings',
    'Limits',
    'Phase',
    'Plan',
    'Planner',
    'Timeline',
    'chunk_from_message',
]
