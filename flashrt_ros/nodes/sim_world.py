"""The thread in which the simulated world lives: keeps its pace, hears commands, tells what it measures."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashrt_ros.errors import FlashRTError
from flashrt_ros.nodes.sim_outputs import Outputs
from flashrt_ros.nodes.sim_parameters import SimParameters
from flashrt_ros.simulation.cameras import Cameras
from flashrt_ros.simulation.controller import ControllerCounts
from flashrt_ros.simulation.scene import Scene
from flashrt_ros.simulation.session import JOINTS, Session
from flashrt_ros.simulation.world import World

TURN_NS = 10_000_000
"""The world moves by so much at a time, and /clock with it."""

MOST_BEHIND_S = 0.1
"""Further behind than this, lost time is given up rather than made up for."""

Command = tuple[Sequence[str], list[tuple[int, Sequence[float]]], int]


@dataclass
class Told:
    """What the node shows of the world. failure: why its thread ended, or ''. pace: times real time."""

    robot: str = ''
    seed: int = 0
    state: str = 'starting'
    failure: str = ''
    pace: float = 0.0
    silent: bool = True
    counts: ControllerCounts = field(default_factory=ControllerCounts)

    def values(self) -> dict[str, Any]:
        return {
            'state': self.state,
            'seed': self.seed,
            'pace [x real time]': self.pace,
            'commands': 'silent: holding' if self.silent else 'coming',
            'commands accepted': self.counts.accepted,
            'silences': self.counts.silences,
            **{f'refused: {why}': count for why, count in sorted(self.counts.refused.items())},
            **{f'limited: {joint}': count for joint, count in sorted(self.counts.limited.items())},
        }


class SimWorld:
    """`command` and `ask_to_reset` may be called from any thread."""

    def __init__(
        self, scene: Scene, chosen: SimParameters, outputs: Outputs, told: Told, logger: Any
    ) -> None:
        self._scene, self._chosen, self._outputs = scene, chosen, outputs
        self._told, self._logger = told, logger
        self._told.robot, self._told.seed = scene.name, chosen.seed
        self._commands: deque[Command] = deque(maxlen=100)
        self._resets: deque[Callable[[], None]] = deque()
        self._stopping = threading.Event()
        self._reset_ns = 0
        self._thread = threading.Thread(target=self._live, name='world', daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def command(self, names: Sequence[str], points: list[tuple[int, Sequence[float]]], stamp_ns: int) -> None:
        """stamp_ns: of the header [ROS time]; 0 for now."""
        self._commands.append((names, points, stamp_ns))

    def ask_to_reset(self, done: Callable[[], None]) -> None:
        self._resets.append(done)

    def _live(self) -> None:
        try:
            cameras = Cameras(self._scene, self._chosen.width, self._chosen.height)
            world = World(self._scene)
            world.reset(self._chosen.seed)
            begin_ns = time.time_ns() // world.step_ns * world.step_ns
            session = Session(world, begin_ns, self._chosen.camera_hz, self._chosen.joint_states_hz)
            session.controller.silence_ns = round(self._chosen.silence_s * 1e9)
            self._told.counts = session.controller.counts
            self._run(session, cameras)
        except FlashRTError as error:
            self._fail(str(error))
        except Exception:
            self._fail(traceback.format_exc())

    def _fail(self, why: str) -> None:
        self._told.state, self._told.failure = 'failed', why
        self._logger.error(f'the world has ended: {why}')

    def _run(self, session: Session, cameras: Cameras) -> None:
        speed = self._chosen.speed
        began, began_ns = time.monotonic(), session.now_ns
        marked, marked_ns = began, began_ns
        self._tell(session, 'running')
        while not self._stopping.is_set():
            self._hear(session)
            for now_ns, due in session.steps(session.now_ns + TURN_NS):
                self._measure(session, cameras, due, now_ns)
            self._outputs.clock(session.now_ns)
            self._judge(session)
            if speed:
                ahead = (session.now_ns - began_ns) / 1e9 / speed - (time.monotonic() - began)
                if ahead > 0:
                    self._stopping.wait(ahead)
                elif ahead < -MOST_BEHIND_S:
                    began, began_ns = time.monotonic(), session.now_ns
            if time.monotonic() - marked > 1.0:
                self._told.pace = (session.now_ns - marked_ns) / 1e9 / (time.monotonic() - marked)
                marked, marked_ns = time.monotonic(), session.now_ns

    def _stamp_ns(self, now_ns: int) -> int:
        """ROS time of a measurement."""
        return now_ns if self._chosen.publish_clock else time.time_ns()

    def _hear(self, session: Session) -> None:
        while self._resets:
            done = self._resets.popleft()
            self._commands.clear()
            self._told.seed += 1
            session.reset(self._told.seed)
            self._reset_ns = self._stamp_ns(session.now_ns)
            self._logger.info(f'reset: seed {self._told.seed}')
            self._tell(session, 'running')
            done()
        while self._commands:
            names, points, stamp_ns = self._commands.popleft()
            now_ns = self._stamp_ns(session.now_ns)
            if 0 < stamp_ns < self._reset_ns:
                refusal = session.controller.refuse('it is from before the reset')
            else:
                start_ns = session.now_ns + (stamp_ns - now_ns if stamp_ns else 0)
                refusal = session.controller.command(names, points, session.now_ns, start_ns)
            if refusal:
                self._logger.warning(f'command refused: {refusal}', throttle_duration_sec=1.0)
        if session.controller.silent and not self._told.silent:
            self._logger.warning('no commands any more: holding')
        self._told.silent = session.controller.silent

    def _measure(self, session: Session, cameras: Cameras, due: list[str], now_ns: int) -> None:
        stamp_ns = self._stamp_ns(now_ns)
        for name in due:
            if name == JOINTS:
                world = session.world
                self._outputs.joint_states(world.positions, world.velocities, stamp_ns)
            elif self._outputs.wanted(name):
                self._outputs.picture(name, cameras.look(name, session.world.snapshot()), stamp_ns)

    def _judge(self, session: Session) -> None:
        if self._told.state != 'running':
            return
        if session.success_ns is not None:
            self._tell(session, 'succeeded')
        elif session.failed_ns is not None:
            self._tell(session, 'failed')
        elif session.seconds > self._chosen.limit_s:
            self._tell(session, 'over')

    def _tell(self, session: Session, state: str) -> None:
        self._told.state = state
        self._outputs.outcome(session, self._told.seed, state)
        if state != 'running':
            self._logger.info(f'seed {self._told.seed}: {state} after {session.seconds:.2f} s')
