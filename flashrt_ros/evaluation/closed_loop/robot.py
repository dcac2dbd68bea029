"""A simulated robot as the source of what a policy sees, and the receiver of what it commands.

For the evaluation it looks like a bag that is being recorded: it gives arrivals in the order of time, and as
a `Listener` it hears the commands. Pictures are rendered when somebody looks at them, so that frames that no
inference takes cost nothing.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control import Plan
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.bag import Record
from flashrt_ros.evaluation.closed_loop.faults import GOOD, CameraFault
from flashrt_ros.evaluation.interfaces import header_at, known_types, make
from flashrt_ros.evaluation.replay.feed import IMAGE, JOINT_STATE, TIME, Arrival, Sources, wanted_type
from flashrt_ros.evaluation.replay.problems import Problems
from flashrt_ros.evaluation.replay.watch import Looked
from flashrt_ros.evaluation.run import absolute, input_topics
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.simulation.cameras import Cameras
from flashrt_ros.simulation.session import JOINTS, Session
from flashrt_ros.simulation.world import Snapshot, World

EPOCH_NS = 1_800_000_000 * 10**9
"""Simulated time begins here: a time of day as a robot's clock has it, and never 0."""

AFTER_SUCCESS_S = 0.5


@dataclass
class SimulatedSpan:
    """From when to when an episode is; it ends when the task is done, or the time is over."""

    path: Path
    start_ns: int
    end_ns: int

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


class Picture:
    """Like sensor_msgs/Image or CompressedImage; rendered when its data are asked for.

    look: gives uint8 [height, width, 3].
    """

    def __init__(
        self, kind: str, topic: str, stamp_ns: int, quality: int, look: Callable[[], np.ndarray]
    ) -> None:
        self.kind, self.topic, self.header = (
            kind,
            topic,
            header_at(stamp_ns, f'{_camera_of(topic)}_optical_frame'),
        )
        self._look, self._quality = look, quality
        self.encoding, self.is_bigendian = 'rgb8', 0
        self.format = 'rgb8; jpeg compressed bgr8'

    @cached_property
    def pixels(self) -> np.ndarray:
        return self._look()

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def step(self) -> int:
        return 3 * self.width

    @cached_property
    def data(self) -> np.ndarray:
        if self.kind == IMAGE:
            return self.pixels.reshape(-1)
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, 'JPEG', quality=self._quality)
        return np.frombuffer(buffer.getvalue(), np.uint8)

    def serialized(self) -> bytes:
        names: tuple[str, ...] = ('header', 'format', 'data')
        if self.kind == IMAGE:
            names = ('header', 'height', 'width', 'encoding', 'is_bigendian', 'step', 'data')
        message = make(self.kind, **{name: getattr(self, name) for name in names})
        return bytes(known_types().serialize_cdr(message, self.kind))


class LazyRecord:
    """A `Record` of a message that is serialised when somebody wants to write it."""

    def __init__(self, topic: str, time_ns: int, serialize: Callable[[], bytes]) -> None:
        self.topic, self.time_ns, self._serialize = topic, time_ns, serialize

    @cached_property
    def data(self) -> bytes:
        return self._serialize()


class SimulatedRobot:
    """One episode of a world that has just been reset. Iterate once.

    limit_s: longest time for the task. fault: of all cameras; seed: of which frames it loses.
    on_arrival: told of every message.
    """

    def __init__(
        self,
        world: World,
        cameras: Cameras,
        config: RobotConfig,
        limit_s: float,
        fault: CameraFault = GOOD,
        seed: int = 0,
        on_arrival: Callable[[Arrival], None] = lambda _: None,
    ) -> None:
        topics = {name: absolute(topic) for name, topic in input_topics(config).items()}
        self.sources = Sources(topics, '')
        self.bag = SimulatedSpan(Path(world.scene.name), EPOCH_NS, EPOCH_NS + round(limit_s * 1e9))
        self.problems = Problems(EPOCH_NS)
        self._session = Session(world, EPOCH_NS)
        self.controller = self._session.controller
        self._world, self._cameras, self._fault = world, cameras, fault
        self._views = {view: camera_for(topics[view], world) for view in config.cameras}
        self._kinds = {view: wanted_type(config, view) for view in config.cameras}
        self._joints = [joint.name for joint in world.scene.joints]
        self._period_ns = round(1e9 / config.rates.control_rate_hz)
        self._rng, self._on_arrival = np.random.default_rng(seed), on_arrival
        self._waiting: list[tuple[int, int, Arrival]] = []
        self._order = count()

    def commanded(self, time_ns: int, positions: np.ndarray) -> None:
        """See `Listener`."""
        self.controller.command(self._joints, [(0, positions.tolist())], time_ns)

    def looked(self, looked: Looked, plan: Plan | None, ready_ns: int) -> None:
        """See `Listener`."""

    @property
    def seconds_to_success(self) -> float | None:
        return None if self._session.success_ns is None else self._session.seconds

    def __iter__(self) -> Iterator[Arrival]:
        session = self._session
        self._measure(session.now_ns, session.due())
        while True:
            yield from self._received(session.now_ns)
            # An inference that begins now comes before the command that is due now.
            yield Arrival(TIME, session.now_ns + 1, None, Record('', session.now_ns, b''))
            if session.now_ns >= self.bag.end_ns:
                return
            for now_ns, due in session.steps(session.now_ns + self._period_ns):
                self._measure(now_ns, due)
                yield from self._received(now_ns)
            self._end()

    def _end(self) -> None:
        """Done, or lost: the episode need not last any longer."""
        ends = [self.bag.end_ns]
        if self._session.success_ns is not None:
            ends.append(self._session.success_ns + round(AFTER_SUCCESS_S * 1e9))
        if self._session.failed_ns is not None:
            ends.append(self._session.failed_ns)
        self.bag.end_ns = max(min(ends), self._session.now_ns if len(ends) > 1 else 0)

    def _measure(self, now_ns: int, due: list[str]) -> None:
        if JOINTS in due:
            self._send(STATE, now_ns, now_ns, self._joint_state(now_ns))
        for view, camera in self._views.items():
            if camera in due and self._rng.random() >= self._fault.drop:
                received_ns = now_ns + round(self._fault.delay_s * 1e9)
                self._send(view, now_ns, received_ns, self._picture(view, now_ns))

    def _send(self, name: str, stamp_ns: int, received_ns: int, message: Any) -> None:
        topic = self.sources.inputs[name]

        def serialize() -> bytes:
            if isinstance(message, Picture):
                return message.serialized()
            return bytes(known_types().serialize_cdr(message, JOINT_STATE))

        record: Any = LazyRecord(topic, received_ns, serialize)
        arrival = Arrival(name, received_ns, message, record)
        heapq.heappush(self._waiting, (received_ns, next(self._order), arrival))

    def _received(self, now_ns: int) -> Iterator[Arrival]:
        while self._waiting and self._waiting[0][0] <= now_ns:
            arrival = heapq.heappop(self._waiting)[2]
            self._on_arrival(arrival)
            yield arrival

    def _joint_state(self, now_ns: int) -> Any:
        return make(
            JOINT_STATE,
            header=header_at(now_ns, 'base_link'),
            name=self._joints,
            position=self._world.positions,
            velocity=self._world.velocities,
            effort=np.zeros(0),
        )

    def _picture(self, view: str, now_ns: int) -> Picture:
        snapshot, camera, fault = self._world.snapshot(), self._views[view], self._fault

        def look(snapshot: Snapshot = snapshot) -> np.ndarray:
            return fault.lit(self._cameras.look(camera, snapshot, fault.tilt_deg))

        return Picture(self._kinds[view], self.sources.inputs[view], now_ns, fault.quality, look)


def camera_for(topic: str, world: World) -> str:
    """The scene's camera that a topic such as /camera/front/image_raw names. Raises ConfigError."""
    camera = _camera_of(topic)
    if camera not in world.scene.cameras:
        known = ', '.join(f'/camera/{name}/image_raw' for name in world.scene.cameras)
        raise ConfigError(
            f"the robot '{world.scene.name}' has no camera for the topic '{topic}'",
            'cameras',
            f'name one of {known}',
        )
    return camera


def _camera_of(topic: str) -> str:
    parts = [part for part in topic.split('/') if part]
    return parts[1] if len(parts) > 1 and parts[0] == 'camera' else ''
