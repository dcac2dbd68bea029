"""How commands leave the streamer: one at every tick, or one trajectory for every chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from trajectory_msgs.msg import JointTrajectory

from flashrt_ros.control.motion import Command, Motion
from flashrt_ros.control.trajectory import standing, trajectory_of
from flashrt_ros.nodes.commands import MakeCommand, trajectory_message

Publish = Callable[[Any], None]


class StepOutput:
    """Every command is sent as it comes."""

    def __init__(self, make: MakeCommand, publish: Publish) -> None:
        self._make, self._publish = make, publish

    def made(self, command: Command | None, motion: Motion, now_ns: int) -> Any:
        """What to `send`. command: of this tick; None for nothing to be sent. now_ns: ROS time."""
        return None if command is None else self._make(command, now_ns)

    def send(self, message: Any) -> None:
        if message is not None:
            self._publish(message)


STOPPING_NS, AGAIN_NS = 250_000_000, 20_000_000
"""How long the way to rest is sent, and how often, each time anew from where the robot is by then.

A controller may subscribe with the system's QoS (joint_trajectory_controller does), which with Fast DDS is
best effort: what is sent only once may be lost, and then the robot would go on to the end of its chunk.
"""


class ChunkOutput:
    """A trajectory when a chunk is accepted, and some to come to rest when the motion is stopped.

    The executor still runs at every tick, so that counters, holds and stops are what they are in step mode.
    """

    def __init__(self, joints: Sequence[str], period_ns: int, publish: Publish) -> None:
        self._joints, self._period_ns, self._publish = joints, period_ns, publish
        self._sent: object = None
        last, every = STOPPING_NS // period_ns, max(1, AGAIN_NS // period_ns)
        self._repeats, self._ticks = range(every, last + 1, every), last + 1
        self._last: np.ndarray | None = None

    def made(self, command: Command | None, motion: Motion, now_ns: int) -> JointTrajectory | None:
        """What to `send`. It counts the ticks, so nothing is made ahead of one."""
        entry = motion.following
        if command is not None:
            self._last = command.positions
        following = None if entry is None else (entry.chunk.epoch, entry.chunk.sequence, entry.begin_ns)
        if following != self._sent:
            self._sent, self._ticks = following, 0
        else:
            self._ticks += 1
            if following is not None or self._ticks not in self._repeats:
                return None
        trajectory = trajectory_of(motion.executor, now_ns, self._period_ns)
        if trajectory is None and following is None and self._last is not None:
            # Silence would let the controller finish the trajectory that it has.
            trajectory = standing(self._last, self._period_ns)
        return None if trajectory is None else trajectory_message(self._joints, trajectory)

    def send(self, message: JointTrajectory | None) -> None:
        if message is not None:
            self._publish(message)
