"""How observations come in: messages to arrays, the latest of each stream, gates in front of the policy.

Messages are read by their fields alone, so nothing here needs ROS: the node and the bag evaluator share it.
"""

from flashrt_ros.frame import Frame, FrameSource
from flashrt_ros.ingest.ingest import Blocked, Ingest, Taken
from flashrt_ros.ingest.joints import JointMap

__all__ = ['Blocked', 'Frame', 'FrameSource', 'Ingest', 'JointMap', 'Taken']
