"""A robot with its controller and its sensors' schedules: what is measured when, and how the task went.

session = Session(world, begin_ns)
for now_ns, due in session.steps(end_ns):      # physics step by physics step
    ...                                        # measure what is in `due`
"""

from __future__ import annotations

from collections.abc import Iterator

from flashrt_ros.simulation.controller import Controller
from flashrt_ros.simulation.world import World

JOINTS = 'joints'
"""Name of the joint sensors, beside those of the cameras."""

CAMERA_HZ, JOINTS_HZ = 30.0, 100.0


class Session:
    """Times in ns of any clock. Cameras are not synchronised: they share out a period.

    success_ns, failed_ns: when the task was done, or could not be done any more; None until then.
    """

    success_ns: int | None
    failed_ns: int | None

    def __init__(
        self, world: World, begin_ns: int, camera_hz: float = CAMERA_HZ, joints_hz: float = JOINTS_HZ
    ) -> None:
        self.world, self.now_ns = world, begin_ns
        self.controller = Controller(world.scene.joints)
        cameras = list(world.scene.cameras)
        self._period_ns = {JOINTS: round(1e9 / joints_hz), **dict.fromkeys(cameras, round(1e9 / camera_hz))}
        self._next_ns = {JOINTS: begin_ns}
        for place, camera in enumerate(cameras):
            self._next_ns[camera] = begin_ns + self._period_ns[camera] * place // len(cameras)
        self._begin()

    def reset(self, seed: int) -> None:
        """Robot at home and the task laid out anew, at once; time and sensors go on."""
        self.world.reset(seed)
        self._begin()

    def steps(self, end_ns: int) -> Iterator[tuple[int, list[str]]]:
        """Let the world move until `end_ns`. Gives the time and the sensors that measure then."""
        while self.now_ns < end_ns:
            self.now_ns += self.world.step_ns
            outcome = self.world.advance(self.controller.set_point(self.now_ns), 1)
            if outcome.succeeded and self.success_ns is None:
                self.success_ns = self.now_ns
            if outcome.failed and self.failed_ns is None:
                self.failed_ns = self.now_ns
            yield self.now_ns, self.due()

    def due(self) -> list[str]:
        """The sensors that measure now."""
        found = [name for name, next_ns in self._next_ns.items() if next_ns <= self.now_ns]
        for name in found:
            self._next_ns[name] += self._period_ns[name]
        return found

    @property
    def seconds(self) -> float:
        """Since the reset, or from there to success."""
        return ((self.success_ns or self.now_ns) - self.begin_ns) / 1e9

    def _begin(self) -> None:
        self.begin_ns = self.now_ns
        self.success_ns = self.failed_ns = None
        self.controller.reset(self.now_ns, self.world.home)
