"""What a simulated robot is made of: a model for physics, one for pictures, its joints, and its task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import mujoco
import numpy as np


@dataclass(frozen=True)
class Outcome:
    """How the task stands. distance_m: from the object to its goal. failed: it cannot be done any more."""

    succeeded: bool
    failed: bool
    distance_m: float


class Task(Protocol):
    """What is to be done. Works on the data of the physics model."""

    def reset(self, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Place what is to be handled, after the robot has been put home."""
        ...

    def outcome(self, data: mujoco.MjData) -> Outcome:
        """To be asked after every control period: it remembers what has been."""
        ...


@dataclass(frozen=True)
class Joint:
    """A joint as ROS sees it. qpos, dof: addresses in the model. home: rad or m. speed: motor, per s."""

    name: str
    qpos: int
    dof: int
    low: float
    high: float
    home: float
    speed: float


@dataclass(frozen=True)
class Scene:
    """A robot with its task.

    physics, view: two models of the same joints and bodies; only `view` is rendered. joints: [D], in ROS
    order. actuation: [actuators, D], set points from joint positions. cameras: name of a camera in ROS ->
    name in the model. prompt: the task in words.
    """

    name: str
    physics: mujoco.MjModel
    view: mujoco.MjModel
    joints: tuple[Joint, ...]
    actuation: np.ndarray
    cameras: dict[str, str]
    prompt: str
    make_task: Callable[[mujoco.MjModel], Task]


def described(
    model: mujoco.MjModel,
    names: Sequence[str],
    sources: Sequence[str],
    home: Sequence[float],
    speeds: Sequence[float],
) -> tuple[Joint, ...]:
    """Joints `names`, measured at the model's joints `sources`, within their ranges."""
    found = []
    for name, source, rest, speed in zip(names, sources, home, speeds, strict=True):
        joint = model.joint(source)
        low, high = joint.range
        found.append(Joint(name, int(joint.qposadr[0]), int(joint.dofadr[0]), low, high, rest, speed))
    return tuple(found)


def add_camera(
    body: mujoco.MjsBody,
    name: str,
    position: Sequence[float],
    target: Sequence[float],
    up: Sequence[float],
    fovy: float,
) -> None:
    """Put a camera at `position` [m, in the frame of `body`] that looks at `target`. fovy: degrees."""
    backward = np.subtract(position, target)
    backward /= np.linalg.norm(backward)
    right = np.cross(up, backward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    body.add_camera(name=name, pos=position, quat=quaternion, fovy=fovy)
