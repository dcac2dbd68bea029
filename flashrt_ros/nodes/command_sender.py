"""The command of a tick: made ahead of its time, or when it is due; then sent."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from flashrt_ros.control.motion import Ahead, Motion
from flashrt_ros.nodes.output import ChunkOutput, StepOutput
from flashrt_ros.tracing import stage


class _Ready(NamedTuple):
    ahead: Ahead
    message: Any
    steady_ns: int


class CommandSender:
    """One caller at a time. Whatever is done to the motion after `prepare` makes `send` begin anew."""

    def __init__(self, motion: Motion, output: StepOutput | ChunkOutput) -> None:
        self._motion, self._output = motion, output
        self._ready: _Ready | None = None

    def prepare(self, ros_ns: int, steady_ns: int) -> None:
        """Make what `send` is to send at this time, on both clocks, unless that is ready already."""
        ready = self._ready
        if ready is not None and ready.steady_ns == steady_ns and self._motion.stands(ready.ahead):
            return
        with stage('command'):
            ahead = self._motion.ahead(ros_ns, steady_ns)
            message = self._output.made(ahead.command, ahead.motion, ros_ns)
        self._ready = _Ready(ahead, message, steady_ns)

    def send(self, ros_ns: int) -> int:
        """Send what is to be sent now. ros_ns: ROS time. Returns when it was handed over [monotonic, ns]."""
        ready, self._ready, steady_ns = self._ready, None, time.monotonic_ns()
        if ready is not None and self._motion.adopt(ready.ahead, ros_ns, steady_ns):
            message = ready.message
        else:
            with stage('command'):
                command = self._motion.tick(ros_ns, steady_ns)
                message = self._output.made(command, self._motion, ros_ns)
        handed_over_ns = time.monotonic_ns()
        with stage('publish'):
            self._output.send(message)
        return handed_over_ns
