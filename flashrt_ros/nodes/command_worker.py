"""The work of the streamer: chunks and joint states in, a command at every tick out, stops at any time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.clock import ROSClock
from rclpy.impl.rcutils_logger import RcutilsLogger

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.control import ActionKinds, ChunkError, ExecutorSettings, Limits, Phase, chunk_from_message
from flashrt_ros.control.history import StateHistory
from flashrt_ros.control.motion import Motion
from flashrt_ros.control.supervisor import STARVED, SafetySettings
from flashrt_ros.errors import ObservationError
from flashrt_ros.ingest import JointMap
from flashrt_ros.ingest.cdr import MalformedMessage, header_stamp_ns
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.ingest.stream import Stream
from flashrt_ros.msg import ActionChunk
from flashrt_ros.nodes.command_sender import CommandSender
from flashrt_ros.nodes.edge_log import EdgeLog
from flashrt_ros.nodes.feedback import executing_message
from flashrt_ros.nodes.output import ChunkOutput, StepOutput
from flashrt_ros.nodes.unread_state import StateReader
from flashrt_ros.tracing import stage

REST_S = 2.0
"""Longest time that the way to rest may take when the node is deactivated."""


class CommandWorker:
    """`tick` is called by the command thread, `take_chunk` by one that waits for chunks, `keep_state` by any,
    one at a time, everything else by the node's executor.

    take_states: called when joint states are needed; gives those that have come to `keep_state`.
    tell: publishes on executing_chunk. stopped: called with True and False when motion is stopped and
    allowed.
    """

    def __init__(
        self,
        config: RobotConfig,
        limits: Limits,
        clock: ROSClock,
        logger: RcutilsLogger,
        output: StepOutput | ChunkOutput,
        tell: Callable[[ActionChunk], None],
        stopped: Callable[[bool], None],
    ) -> None:
        self.state = Stream(STATE, config.joint_states.topic, config.joint_states.latency_s)
        self.refused = EdgeLog(logger, 'chunk refused')
        self.without_motion = EdgeLog(logger, 'no motion')
        self.malformed = 0
        self._simulated = clock.ros_time_is_active
        self._max_age_ns = round(config.joint_states.max_age_s * 1e9)
        self._joints, self._ranges = JointMap.of(config), ActionKinds.of(config)
        self._history, self._reader = StateHistory(), StateReader()
        self._period_s = 1.0 / config.rates.control_rate_hz
        self._motion = Motion(ExecutorSettings.of(config), SafetySettings.of(config, self._simulated), limits)
        self._lock, self._telling = threading.RLock(), threading.Lock()
        self._clock, self._sender = clock, CommandSender(self._motion, output)
        self._tell, self._tell_stopped = tell, stopped
        self.take_states: Callable[[], None] = lambda: None
        self._told: object = None
        self._told_stopped: bool | None = None

    @property
    def phase(self) -> Phase:
        return self._motion.phase

    @property
    def trouble(self) -> str:
        """Why an operator's stop stands, a chunk was refused, or nothing moves; '' without trouble."""
        by_operator = self._motion.supervisor.stop not in ('', STARVED)
        refused, idle = self.refused.current, self.without_motion.current
        return (idle if by_operator else refused) or idle

    def report(self) -> dict[str, Any]:
        """State, stop reason and counters since configure, for people to read."""
        with self._lock:
            executor, supervisor = self._motion.executor, self._motion.supervisor
            counts, clamped = dict(vars(executor.counts)), dict(executor.clamps_of)
            left = self._rows_left(self._clock.now().nanoseconds)
            safety = {
                'motion': supervisor.state,
                'stop reason': supervisor.reason,
                **_named(supervisor.stops),
            }
        refused = counts.pop('chunks_refused')
        names = self._joints.names
        return {
            'phase': self.phase.value,
            **safety,
            'rows left': left,
            **counts,
            'chunks_refused': _listed(refused) or 0,
            'chunks_malformed': self.malformed,
            'largest jump': executor.largest_jump,
            'clamps by joint': _listed({names[joint]: clamped[joint] for joint in sorted(clamped)}) or 0,
        }

    def apply(self, config: RobotConfig) -> None:
        """Use the dynamic values of a configuration from now on."""
        self._max_age_ns = round(config.joint_states.max_age_s * 1e9)
        with self._lock:
            safety = SafetySettings.of(config, self._simulated)
            self._motion.configure(ExecutorSettings.of(config), safety)

    def begin(self) -> None:
        """Forget all motion: the next chunk starts from standstill."""
        with self._lock:
            self._motion.begin()
        self._announce(self._clock.now().nanoseconds)

    def keep_state(self, message: bytes, received_ns: int) -> None:
        """message: a serialized JointState. Few are ever read; bytes cost the garbage collector nothing."""
        try:
            stamp_ns = header_stamp_ns(message)
        except MalformedMessage as error:
            self.state.drop(str(error))
            return
        self.state.put(message, stamp_ns, received_ns)
        self._history.add(stamp_ns, message)

    def take_chunk(self, message: ActionChunk) -> None:
        """Execute a chunk from now on, or say why not."""
        with stage('accept'):
            self._take_chunk(message)

    def _take_chunk(self, message: ActionChunk) -> None:
        now_ns = self._clock.now().nanoseconds
        try:
            chunk = chunk_from_message(message, self._joints.names, self._ranges, self._measured_at)
        except ChunkError as error:
            self.malformed += 1
            self.refused.trouble(error.what, str(error))
            return
        with self._lock:
            needed = self._motion.starts_from_measured(now_ns)
            measured = self._measured(now_ns) if needed else None
            refusal = self._motion.accept(chunk, now_ns, time.monotonic_ns(), measured)
            self._told = None  # every chunk is answered, also a refused one
        if self._simulated:  # else by the tick that is next: a message takes longer to build than all this
            self._announce(now_ns)
        if refusal:
            self.refused.trouble(refusal, refusal)
        else:
            self.refused.clear()

    def prepare(self, ros_ns: int, steady_ns: int) -> None:
        """Make ready what `tick` has to send at this time, on ROS time and on the monotonic clock."""
        with self._lock:
            self._sender.prepare(ros_ns, steady_ns)

    def tick(self, now_ns: int) -> int:
        """now_ns: ROS time. Returns when the command was handed over [monotonic, ns]."""
        with self._lock, stage('tick'):
            handed_over_ns = self._sender.send(now_ns)
            trouble, kind = self._motion.trouble, (self._motion.supervisor.state, self._motion.phase)
        if trouble:
            self.without_motion.trouble(kind, trouble)
        else:
            self.without_motion.clear()
        self._announce(now_ns)
        return handed_over_ns

    def watch(self, failure: str = '') -> None:
        """Called now and then on real time: stops the robot also when no tick comes.

        failure: why the command thread has ended; then this is the only place from which commands come.
        """
        with self._lock:
            if failure:
                self._motion.estop(f'the command loop has failed: {failure}')
                self.tick(self._clock.now().nanoseconds)
                return
            before, now_ns = self._motion.supervisor.stop, self._clock.now().nanoseconds
            if self._motion.watch(now_ns, time.monotonic_ns()) and not before:
                self.tick(now_ns)

    def act(self, what: str) -> tuple[bool, str]:
        """An operator's act: hold, resume, estop or reset. It works at once. (Done?, what it means)."""
        now_ns = self._clock.now().nanoseconds
        acts: dict[str, Callable[[], tuple[bool, str]]] = {
            'hold': self._motion.hold,
            'resume': lambda: self._motion.resume(time.monotonic_ns()),
            'estop': self._motion.estop,
            'reset': lambda: self._motion.reset(now_ns),
        }
        with self._lock:
            answer = acts[what]()
            self.tick(now_ns)
        return answer

    def deadman(self, pressed: bool) -> None:
        with self._lock:
            self._motion.deadman(pressed, time.monotonic_ns())
            if not pressed:
                self.tick(self._clock.now().nanoseconds)

    def come_to_rest(self, reason: str) -> None:
        """Send the way to rest and the safe action, last of all. The command thread must have ended."""
        now_ns, until = self._clock.now().nanoseconds, time.monotonic() + REST_S
        with self._lock:
            self._motion.end(reason)
            moving = True
            while moving:
                self.tick(now_ns)
                moving = not self._motion.executor.at_rest and time.monotonic() < until
                if moving:
                    time.sleep(self._period_s)
                    now_ns += round(self._period_s * 1e9)
            self.tick(now_ns + round(self._period_s * 1e9))

    def _rows_left(self, now_ns: int) -> int:
        """Depth of the queue: rows of the chunk in execution whose time has not come."""
        entry = self._motion.following
        if entry is None:
            return 0
        return max(0, -(-(entry.end_ns - now_ns) // entry.chunk.step_ns))

    def _announce(self, now_ns: int) -> None:
        """Tell the policy what is followed, and everybody whether motion is stopped, when it changes.

        A message takes longer to build than a command is late otherwise, so a tick waits for none. Whoever
        finds another telling leaves it to the next tick: what is told last is what is followed.
        """
        if not self._telling.acquire(blocking=False):
            return
        try:
            with self._lock:
                entry, stopped = self._motion.following, bool(self._motion.supervisor.stop)
                key = (None,) if entry is None else (entry.chunk.epoch, entry.chunk.sequence, entry.begin_ns)
                changed, turned = key != self._told, stopped != self._told_stopped
                self._told, self._told_stopped = key, stopped
            if changed:
                self._tell(executing_message(entry, now_ns))
            if turned:
                self._tell_stopped(stopped)
        finally:
            self._telling.release()

    def _measured(self, now_ns: int) -> np.ndarray | None:
        """Where the robot is, if that is known and recent; else the executor starts no motion and says so."""
        self.take_states()
        sample = self.state.latest()
        if sample is None or now_ns - sample.stamp_ns > self._max_age_ns:
            return None
        try:
            positions = self._positions(sample.message)
        except ObservationError as error:
            self.state.reject(sample, f'{error.what}. {error.fix}')
            return None
        self.state.take(sample)
        return positions

    def _measured_at(self, time_ns: int) -> np.ndarray | None:
        """Where the robot was when something was observed."""
        self.take_states()
        message = self._history.at(time_ns, self._max_age_ns)
        if message is None:
            return None
        try:
            return self._positions(message)
        except ObservationError:
            return None

    def _positions(self, message: bytes) -> np.ndarray:
        return self._joints.positions(self._reader.unread(message))


def _named(stops: dict[str, int]) -> dict[str, int]:
    return {f'stops, {kind}': count for kind, count in stops.items()}


def _listed(counts: dict[str, int]) -> str:
    return ', '.join(f'{name}: {count}' for name, count in counts.items())
