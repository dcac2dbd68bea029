"""How commands leave the streamer: one at every tick, or one trajectory for every chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flashrt_ros.control.motion import Command, Motion
from flashrt_ros.control.trajectory import standing, trajectory_of
from flashrt_ros.nodes.commands import MakeCommand, trajectory_message

Publish = Callable[[Any], None]


class StepOutput:
    """Every command is sent as it comes."""

    def __init__(self, make: MakeCommand, publish: Publish) -> None:
        self._make, self._publish = make, publish

    def send(self, command: Command | None, motion: Motion, now_ns: int) -> None:
        """command: of this tick; None for nothing to be sent. now_ns: ROS time."""
        if command is not None:
            self._publish(self._make(command, now_ns))


class ChunkOutput:
    """A trajectory when a chunk is accepted, and one to come to rest when the motion is stopped.

    The executor still runs at every tick, so that counters, holds and stops are what they are in step mode.
    """

    def __init__(self, joints: Sequence[str], period_ns: int, publish: Publish) -> None:
        self._joints, self._period_ns, self._publish = joints, period_ns, publish
        self._sent: object = None
        self._last: np.ndarray | None = None

    def send(self, command: Command | None, motion: Motion, now_ns: int) -> None:
        entry = motion.following
        if command is not None:
            self._last = command.positions
        following = None if entry is None else (entry.chunk.epoch, entry.chunk.sequence, entry.begin_ns)
        if following == self._sent:
            return
        self._sent = following
        trajectory = trajectory_of(motion.executor, now_ns, self._period_ns)
        if trajectory is None and following is None and self._last is not None:
            # Silence would let the controller finish the trajectory that it has.
            trajectory = standing(self._last, now_ns, self._period_ns)
        if trajectory is not None:
            self._publish(trajectory_message(self._joints, trajectory))
