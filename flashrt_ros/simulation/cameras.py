"""Pictures of a scene, on a GPU or in software."""

from __future__ import annotations

import weakref
from typing import Any

import mujoco
import numpy as np

from flashrt_ros.simulation.gl import open_context
from flashrt_ros.simulation.scene import Scene
from flashrt_ros.simulation.world import Snapshot

COSTLY = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION)
"""Without a GPU they cost more than all the rest: 8 ms a picture of 320 x 240, 45 with them."""

MOST_GEOMS = 1000


class Cameras:
    """Renders snapshots of one scene. Belongs to the thread that made it."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        """Raises SimulationError without an OpenGL library."""
        self._model, self._names = scene.view, scene.cameras
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = width, height
        self._model.vis.quality.offsamples = 0
        self._gl = open_context(width, height)
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._data, self._option = mujoco.MjData(self._model), mujoco.MjvOption()
        self._scene = mujoco.MjvScene(self._model, MOST_GEOMS)
        for costly in COSTLY:
            self._scene.flags[costly] = 0
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        # At the end of the process OpenGL must still be there when its context goes.
        self._close = weakref.finalize(self, _free, self._context, self._gl)
        self._camera, self._pixels = mujoco.MjvCamera(), np.zeros((height, width, 3), np.uint8)

    def look(self, camera: str, snapshot: Snapshot, tilt_deg: float = 0.0) -> np.ndarray:
        """uint8 [height, width, 3] RGB: what `camera` (a name of `scene.cameras`) sees.

        tilt_deg: that it is turned upwards from its place.
        """
        self._data.qpos[:] = snapshot.qpos
        self._data.mocap_pos[:] = snapshot.mocap
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        if tilt_deg:
            self._tilt(self._model.camera(self._names[camera]).id, np.deg2rad(tilt_deg))
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = self._model.camera(self._names[camera]).id
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, None, self._camera, everything, self._scene
        )
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        return self._pixels[::-1].copy()

    def _tilt(self, camera: int, angle: float) -> None:
        """Turn it about its own x axis, which points to the right of the picture."""
        cos, sin = np.cos(angle), np.sin(angle)
        turned = self._data.cam_xmat[camera].reshape(3, 3) @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]]
        self._data.cam_xmat[camera] = turned.ravel()

    def close(self) -> None:
        self._close()


def _free(context: mujoco.MjrContext, gl: Any) -> None:
    context.free()
    gl.free()
