"""A scripted expert for the SO-101's pick and place, which sees what no camera sees: where the cube is.

What it does follows from the state of the world alone, never from what it did before. So it can be asked
from any state, also from one that it would never have come to itself, and answers with the way back. It
knows four situations, each a funnel: the further off in the plane, the higher the gripper goes.

    cube at the goal, on the table     let go, then home
    cube between the jaws              to the goal, up, over, and down
    gripper over the cube, low         close
    anything else                      open, up, over to the cube, and down
"""

from __future__ import annotations

import numpy as np

from flashrt_ros.simulation.so101 import CUBE, CUBE_HEIGHT, PickAndPlace
from flashrt_ros.simulation.world import World
from training.kinematics import ARM, Kinematics

TICK_S = 0.05
"""Between two commands; the rows of a chunk."""

STEPS_OF_TICK = 25
OPEN, CLOSED = 1.1, -0.05
"""rad, of the gripper joint."""

GRASP_HEIGHT, HOVER_HEIGHT, CARRY_HEIGHT = 0.033, 0.095, 0.095
"""m, of the grasp point above the table."""

CLEARANCE = 0.008
"""m between the fixed jaw and the cube on the way down; closing takes it up."""

NEAR, FAR = 0.008, 0.030
"""m in the plane: below NEAR it goes straight down, beyond FAR it goes at full height."""

LOW_FOR_TRAVEL = 0.055
"""m; below it the grasp point goes up before it goes over."""

PLACED = 0.012
"""m from cube to goal at which it is let go; success needs 0.03."""

LOOK_AHEAD = 0.03
"""m; how far along the way the next command lies: it sets the speed."""

UP = np.array([0.0, 0.0, 0.04])
FASTEST, FASTEST_GRIPPER = 0.045, 0.12
"""rad a tick."""


class Expert:
    """`command` gives the next joint targets [6], due a tick later."""

    def __init__(self, world: World) -> None:
        model = world.scene.physics
        self._world, self._task = world, world.task
        assert isinstance(self._task, PickAndPlace)
        self.kinematics = Kinematics(model)
        self._kp = model.actuator_gainprm[:, 0].copy()
        self._cube = model.geom(CUBE).id
        self._fixed, self._moving = model.body('gripper').id, model.body('moving_jaw_so101_v1').id
        self._bodies = model.geom_bodyid

    def command(self, previous: np.ndarray) -> np.ndarray:
        """previous: [6] rad, the targets until now."""
        world = self._world
        measured = world.positions
        here, cube = self.kinematics.grasp_point(measured), self._task.cube(world.data)
        point, gripper = self._aim(here, cube, measured[ARM], previous[ARM])
        if point is None:
            arm = world.home[:ARM]
        else:
            way = point - here
            length = np.linalg.norm(way)
            ahead = here + way * min(1.0, LOOK_AHEAD / max(length, 1e-9))
            arm = self.kinematics.solve(ahead, measured)
        # The servos are springs: what gravity pulls them down by is added beforehand.
        arm = arm + world.data.qfrc_bias[:ARM] / self._kp[:ARM]
        step = arm - previous[:ARM]
        step *= min(1.0, FASTEST / max(np.abs(step).max(), 1e-9))
        turn = np.clip(gripper - previous[ARM], -FASTEST_GRIPPER, FASTEST_GRIPPER)
        return np.append(previous[:ARM] + step, previous[ARM] + turn)

    def _aim(
        self, here: np.ndarray, cube: np.ndarray, opening: float, wanted: float
    ) -> tuple[np.ndarray | None, float]:
        """Where the grasp point shall go ([3] m; None: home), and the gripper [rad]."""
        on_table = cube[2] < CUBE_HEIGHT + 0.006
        touching = self._touching()
        if on_table and np.linalg.norm(cube[:2] - self._task.goal) < PLACED:
            if opening < OPEN - 0.25:
                return here, OPEN
            return (here + UP, OPEN) if here[2] < HOVER_HEIGHT - 0.01 else (None, OPEN)
        if touching == {self._fixed, self._moving} and opening - wanted > 0.12:
            return self._carry(here, cube), CLOSED
        return self._fetch(here, cube, opening)

    def _carry(self, here: np.ndarray, cube: np.ndarray) -> np.ndarray:
        """The grasp point goes where it brings the cube, wherever it sits between the jaws."""
        off = self._task.goal - cube[:2]
        held = here - cube
        height = CUBE_HEIGHT + 0.002 + held[2] + _funnel(off, PLACED / 2, FAR) * (CARRY_HEIGHT - GRASP_HEIGHT)
        if cube[2] < CUBE_HEIGHT + 0.02 and np.linalg.norm(off) > FAR:
            return np.array([*here[:2], height])
        return np.array([*(self._task.goal + held[:2]), height])

    def _fetch(self, here: np.ndarray, cube: np.ndarray, opening: float) -> tuple[np.ndarray, float]:
        over = cube[:2] - (0, CLEARANCE)
        off = over - here[:2]
        distance = np.linalg.norm(off)
        low = here[2] < GRASP_HEIGHT + 0.010
        if low and abs(off[0]) < 0.014 and -0.014 < off[1] < 0.022:
            return np.array([*here[:2], GRASP_HEIGHT]), CLOSED
        height = GRASP_HEIGHT + _funnel(off, NEAR, FAR) * (HOVER_HEIGHT - GRASP_HEIGHT)
        if opening < OPEN - 0.3:
            height = max(height, min(HOVER_HEIGHT, here[2] + 0.01))
        if here[2] < LOW_FOR_TRAVEL and distance > FAR:
            return np.array([*here[:2], HOVER_HEIGHT]), OPEN
        return np.array([*over, height]), OPEN

    def _touching(self) -> set[int]:
        """Bodies of the gripper that touch the cube."""
        pairs = self._world.data.contact.geom
        with_cube = pairs[(pairs == self._cube).any(1)]
        others = with_cube.sum(1) - self._cube
        return {int(body) for body in self._bodies[others]} & {self._fixed, self._moving}


def _funnel(off: np.ndarray, near: float, far: float) -> float:
    """0 within `near`, 1 beyond `far`."""
    return float(np.clip((np.linalg.norm(off) - near) / (far - near), 0.0, 1.0))


def tick(world: World, begin: np.ndarray, end: np.ndarray, parts: int = 5) -> None:
    """Let one tick pass while the targets go from `begin` to `end` [6], as an executor interpolates them."""
    for part in range(1, parts + 1):
        world.advance(begin + (end - begin) * part / parts, STEPS_OF_TICK // parts)
