"""A scene in motion: joint targets in, joint positions, the task's outcome and states for pictures out.

world = World(so101())
world.reset(seed=3)
world.advance(targets, 0.02)         # targets: [D], where the joints shall be
world.positions, world.outcome
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from flashrt_ros.simulation.scene import Outcome, Scene


@dataclass(frozen=True)
class Snapshot:
    """Everything that a picture shows. time_ns: since the reset."""

    time_ns: int
    qpos: np.ndarray
    mocap: np.ndarray


class World:
    """One robot and its task. Positions in rad or m, [D] in the order of `scene.joints`."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.data = mujoco.MjData(scene.physics)
        self.task = scene.make_task(scene.physics)
        self._qpos = np.array([joint.qpos for joint in scene.joints])
        self._dof = np.array([joint.dof for joint in scene.joints])
        self.home = np.array([joint.home for joint in scene.joints])
        self.step_ns = round(scene.physics.opt.timestep * 1e9)
        self._steps = 0
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Robot at home, the task laid out anew; the same seed lays it out the same way."""
        mujoco.mj_resetData(self.scene.physics, self.data)
        self._steps = 0
        self.put(self.home)
        self.task.reset(self.data, np.random.default_rng(seed))
        mujoco.mj_forward(self.scene.physics, self.data)
        self.outcome = self.task.outcome(self.data)

    def put(self, positions: np.ndarray) -> None:
        """Set the joints there, at rest, with that as their target."""
        self.data.qpos[self._qpos] = positions
        self.data.qvel[self._dof] = 0
        self.data.ctrl[:] = self.scene.actuation @ positions

    @property
    def time_ns(self) -> int:
        """Since the reset."""
        return self._steps * self.step_ns

    @property
    def positions(self) -> np.ndarray:
        return self.data.qpos[self._qpos].copy()

    @property
    def velocities(self) -> np.ndarray:
        return self.data.qvel[self._dof].copy()

    def advance(self, targets: np.ndarray, steps: int) -> Outcome:
        """Let so many physics steps pass with these joint targets."""
        self.data.ctrl[:] = self.scene.actuation @ targets
        mujoco.mj_step(self.scene.physics, self.data, steps)
        self._steps += steps
        self.outcome = self.task.outcome(self.data)
        return self.outcome

    def snapshot(self) -> Snapshot:
        return Snapshot(self.time_ns, self.data.qpos.copy(), self.data.mocap_pos.copy())
