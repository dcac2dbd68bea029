"""How actions go out: chunks on one absolute time grid, and the executor that makes bounded commands of them.

Every time is an integer of nanoseconds of ROS time and is passed in; nothing here reads a clock or needs ROS.
`planner` and `executor` say in their first lines how to run them offline.
"""

from flashrt_ros.control.chunk import Chunk, ChunkError
from flashrt_ros.control.executor import Executor
from flashrt_ros.control.kinds import ActionKinds
from flashrt_ros.control.limits import Limits
from flashrt_ros.control.messages import chunk_from_message
from flashrt_ros.control.planner import Plan, Planner, PlannerSettings
from flashrt_ros.control.settings import ExecutorCounts, ExecutorSettings
from flashrt_ros.control.strategy import STRATEGIES, Strategy, check_strategy
from flashrt_ros.control.timeline import Combine, Entry, Phase, Timeline

__all__ = [
    'STRATEGIES',
    'ActionKinds',
    'Chunk',
    'ChunkError',
    'Combine',
    'Entry',
    'Executor',
    'ExecutorCounts',
    'ExecutorSettings',
    'Limits',
    'Phase',
    'Plan',
    'Planner',
    'PlannerSettings',
    'Strategy',
    'Timeline',
    'check_strategy',
    'chunk_from_message',
]
