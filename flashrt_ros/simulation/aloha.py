"""Two ViperX arms with a gripper each (ALOHA), seen from above and by both wrists: 14 joints, 3 cameras.

Robot, cube and rules are those of the PyPI package gym-aloha 0.1.5 (`AlohaTransferCube`; Apache-2.0): the
right arm takes the cube up, and the left one takes it over. Each gripper is one joint here, as it is on the
robot: the way of its left finger [m]; the right finger mirrors it.
"""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from flashrt_ros.simulation.assets import assets_of
from flashrt_ros.simulation.meshes import simplify_meshes
from flashrt_ros.simulation.prompts import TRANSFER
from flashrt_ros.simulation.scene import Outcome, Scene, described

ARM = ('waist', 'shoulder', 'elbow', 'forearm_roll', 'wrist_angle', 'wrist_rotate')
SIDES = ('left', 'right')
HOME = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.024)
"""rad; m for the gripper: nearly closed."""

SPEEDS = (3.14159,) * 6 + (1.0,)
"""rad/s and m/s: the joint limits of Interbotix' vx300s description."""

SAMPLING = np.array([[0.0, 0.4], [0.2, 0.6]])
CUBE_HEIGHT, LIFTED = 0.05, 0.03
"""m: where the cube is dropped from, and how far above the table it counts as lifted."""

LOST = 0.0
"""m; a cube below has fallen off the table."""


class TransferCube:
    """Cube to the left gripper, and off the table."""

    def __init__(self, model: mujoco.MjModel) -> None:
        joint = model.joint('red_box_joint')
        self._qpos, self._dof = int(joint.qposadr[0]), int(joint.dofadr[0])
        self._cube, self._table = model.geom('red_box').id, model.geom('table').id
        self._fingers = {model.geom(f'vx300s_left/10_{side}_gripper_finger').id for side in ('left', 'right')}
        self._goal = model.site('left_cam_focus').id

    def reset(self, data: mujoco.MjData, rng: np.random.Generator) -> None:
        place = rng.uniform(*SAMPLING)
        data.qpos[self._qpos : self._qpos + 7] = (*place, CUBE_HEIGHT, 1, 0, 0, 0)
        data.qvel[self._dof : self._dof + 6] = 0

    def outcome(self, data: mujoco.MjData) -> Outcome:
        pairs = data.contact.geom
        touching = set(pairs[(pairs == self._cube).any(1)].ravel().tolist())
        cube = data.qpos[self._qpos : self._qpos + 3]
        distance = float(np.linalg.norm(cube - data.site_xpos[self._goal]))
        done = bool(touching & self._fingers) and self._table not in touching
        return Outcome(done, bool(cube[2] < LOST), distance)


def aloha() -> Scene:
    """Raises SimulationError if the package is not installed."""
    assets = assets_of('gym_aloha', 'gym-aloha')
    view = _spec(assets)
    simplify_meshes(view, assets)
    model = _spec(assets).compile()
    names = [f'{side}_{joint}' for side in SIDES for joint in (*ARM, 'gripper')]
    sources = [f'vx300s_{side}/{joint}' for side in SIDES for joint in (*ARM, 'left_finger')]
    return Scene(
        name='aloha',
        physics=model,
        view=view.compile(),
        joints=described(model, names, sources, HOME * 2, SPEEDS * 2),
        actuation=_actuation(),
        cameras={'high': 'top', 'left': 'left_wrist', 'right': 'right_wrist'},
        prompt=TRANSFER,
        make_task=TransferCube,
    )


def _spec(assets: Path) -> mujoco.MjSpec:
    return mujoco.MjSpec.from_file(str(assets / 'bimanual_viperx_transfer_cube.xml'))


def _actuation() -> np.ndarray:
    """[16, 14] Six joints and two fingers an arm, from six joints and a gripper."""
    arm = np.zeros((8, 7))
    arm[:7] = np.eye(7)
    arm[7, 6] = -1.0
    return np.kron(np.eye(2), arm)
