"""Simulated time at a speed, and on it two cameras and joint states that follow the commands."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

from benchmarks.e2e.camera import stamped
from benchmarks.soak import process
from benchmarks.soak.robot import (
    CAMERA_HZ,
    CLOCK_HZ,
    JOINT_STATES,
    JOINT_STATES_HZ,
    JOINTS,
    SECOND,
    VIEWS,
    topic_of,
)
from benchmarks.soak.witness import Witness

BEGIN_NS = 1_700_000_000 * SECOND
STEP_NS = round(SECOND / CLOCK_HZ)
PICTURES = 8
HOLDS_KEPT = 1000
HOLD_S = 2.0
"""Longest that time stands still for a command; then it is missed."""

CATCH_UP = 0.5
"""Shortest period of the clock after a delay, as part of the usual one: readers keep its last word only."""


@dataclass(frozen=True)
class Hold:
    """Time stood still at `at_ns` for a command that was about to be missed.

    waited_s: what the streamer's threads, or ours, were ready and without a processor meanwhile.
    """

    at_ns: int
    length_s: float
    waited_s: float
    came: bool

    @property
    def busy(self) -> bool:
        """Whether waiting for a processor explains it."""
        return self.waited_s >= 0.5 * self.length_s


class World:
    """`run` in a thread. No step of the clock is left out; it is held where a command is about to be missed.

    So a machine that is too busy slows time down, and only what never comes is missed.

    now_ns: simulated. limit_ns: where time ends. streamer: its process, from when on time is held for it.
    holds: the first thousand; held, held_s: all of them. lost_s: pace that could not be made up for.
    """

    def __init__(self, node: Node, speed: float, witness: Witness) -> None:
        self.now_ns = BEGIN_NS
        self.limit_ns = BEGIN_NS + 10**18
        self.lost_s = self.held_s = self.longest_s = 0.0
        self.held = self.held_busy = 0
        self.holds: list[Hold] = []
        self.streamer: int | None = None
        self._given_up = -1
        self._grid = witness.grid
        self.stop = threading.Event()
        self._period_s = STEP_NS / SECOND / speed
        self._positions = witness.positions
        qos = QoSProfile(depth=10)
        self._clock = node.create_publisher(Clock, '/clock', qos)
        self._cameras = [node.create_publisher(Image, topic_of(view), 1) for view in VIEWS]
        self._joints = node.create_publisher(JointState, JOINT_STATES, 1)
        self._time = bytearray(serialize_message(Clock()))
        self._frames = [_picture(seed) for seed in range(PICTURES)]

    def run(self) -> None:
        due, steps = time.monotonic(), 0
        cameras_every = round(CLOCK_HZ / CAMERA_HZ)
        joints_every = round(CLOCK_HZ / JOINT_STATES_HZ)
        while not self.stop.is_set() and self.now_ns < self.limit_ns:
            late_s = time.monotonic() - due
            if late_s < 0:
                time.sleep(-late_s)
            next_ns = BEGIN_NS + steps * STEP_NS
            if self.streamer is not None and self._grid.behind(next_ns) and self._grid.slot != self._given_up:
                self._hold(next_ns)
            self.now_ns = next_ns
            self._clock.publish(stamped(self._time, self.now_ns))
            # Not all at one moment, as on a robot.
            if steps % cameras_every == 1:
                frame = stamped(self._frames[steps // cameras_every % PICTURES], self.now_ns)
                for camera in self._cameras:
                    camera.publish(frame)
            if steps % joints_every == 3:
                self._send_joints()
            steps += 1
            soonest = time.monotonic() + CATCH_UP * self._period_s
            due += self._period_s
            if due < soonest - 1.0:
                self.lost_s += soonest - due
                due = soonest
            elif due < soonest:
                time.sleep(CATCH_UP * self._period_s)

    def _hold(self, next_ns: int) -> None:
        begin, before = time.monotonic(), self._waited()
        while self._grid.behind(next_ns) and not self.stop.is_set() and time.monotonic() < begin + HOLD_S:
            self._grid.moved.clear()
            if self._grid.behind(next_ns):
                self._grid.moved.wait(0.05)
        length_s = time.monotonic() - begin
        hold = Hold(next_ns, length_s, self._waited() - before, not self._grid.behind(next_ns))
        # Once is enough: who has stopped altogether would hold every step of the clock.
        self._given_up = -1 if hold.came else self._grid.slot
        self.held += 1
        self.held_s += length_s
        self.held_busy += hold.busy
        self.longest_s = max(self.longest_s, length_s)
        if len(self.holds) < HOLDS_KEPT:
            self.holds.append(hold)

    def _waited(self) -> float:
        """Seconds that streamer and we were without a processor so far."""
        try:
            return process.waited(self.streamer or os.getpid()) + process.waited(os.getpid())
        except FileNotFoundError:
            return 0.0

    def _send_joints(self) -> None:
        message = JointState(name=list(JOINTS), position=self._positions())
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self.now_ns, SECOND)
        self._joints.publish(message)


def _picture(seed: int) -> bytearray:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    message = Image(height=48, width=64, encoding='rgb8', step=3 * 64, data=pixels.tobytes())
    message.header.frame_id = 'camera'
    return bytearray(serialize_message(message))
