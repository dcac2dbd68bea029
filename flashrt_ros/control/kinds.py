"""From what a policy's columns mean to absolute joint positions, and back.

    position   the position itself
    delta      offset from the position at the observation
    step       offset from the row before; row 0 from the position at the observation
    gripper    opening as a fraction: 0 at the joint's closed end, 1 at its open end

Offsets are anchored to the position *measured* at the observation, as they were in training: anchoring to a
command, or to a later measurement, adds the tracking error once per chunk (the sawtooth that users see).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.ingest.joints import JointMap

KINDS = ('position', 'delta', 'step', 'gripper')


@dataclass(frozen=True)
class ActionKinds:
    """What each column is, and the conversions. All arrays come and go in ROS units unless said otherwise.

    kinds: [D] of `KINDS`. closed, opened: float64 [D], rad or m, used for grippers."""

    kinds: tuple[str, ...]
    closed: np.ndarray
    opened: np.ndarray

    @classmethod
    def of(cls, config: RobotConfig) -> ActionKinds:
        joints = config.robot.joints
        return cls(
            config.action_kinds,
            np.array([joint.position_min or 0.0 for joint in joints]),
            np.array([joint.position_max or 0.0 for joint in joints]),
        )

    @classmethod
    def positions(cls, count: int) -> ActionKinds:
        """Absolute positions throughout."""
        return cls(('position',) * count, np.zeros(count), np.ones(count))

    def with_kinds(self, kinds: Sequence[str]) -> ActionKinds:
        return ActionKinds(tuple(kinds), self.closed, self.opened)

    @property
    def relative(self) -> bool:
        """Whether an anchor is needed."""
        return bool({'delta', 'step'} & set(self.kinds))

    def to_positions(self, actions: np.ndarray, anchor: np.ndarray) -> np.ndarray:
        """Actions [H, D] in rad or m (grippers: fractions), anchor [D] -> positions float64 [H, D]."""
        positions = np.array(actions, dtype=np.float64)
        if self._all_positions:
            return positions
        delta, step, gripper = self._columns('delta'), self._columns('step'), self._columns('gripper')
        positions[:, delta] += anchor[delta]
        positions[:, step] = anchor[step] + np.cumsum(positions[:, step], axis=0)
        opened, closed = self.opened[gripper], self.closed[gripper]
        positions[:, gripper] = closed + np.clip(positions[:, gripper], 0.0, 1.0) * (opened - closed)
        return positions

    def from_positions(self, positions: np.ndarray, anchor: np.ndarray) -> np.ndarray:
        """The inverse of `to_positions`, row by row: positions [R, D] -> actions [R, D]."""
        actions = np.array(positions, dtype=np.float64)
        delta, step, gripper = self._columns('delta'), self._columns('step'), self._columns('gripper')
        actions[:, delta] -= anchor[delta]
        actions[:, step] = np.diff(actions[:, step], axis=0, prepend=anchor[None, step])
        opened, closed = self.opened[gripper], self.closed[gripper]
        actions[:, gripper] = (actions[:, gripper] - closed) / (opened - closed)
        return actions

    def in_ros_units(self, actions: np.ndarray, joints: JointMap) -> np.ndarray:
        """Checkpoint units -> rad or m, float64 [H, D]: offsets are only scaled, fractions stay."""
        actions = np.asarray(actions, dtype=np.float64)
        ros = joints.to_ros(actions)
        if self._all_positions:
            return ros
        offsets, gripper = [*self._columns('delta'), *self._columns('step')], self._columns('gripper')
        ros[:, offsets] = actions[:, offsets] / joints.scale[offsets]
        ros[:, gripper] = actions[:, gripper]
        return ros

    def in_checkpoint_units(self, actions: np.ndarray, joints: JointMap) -> np.ndarray:
        """The inverse of `in_ros_units`: [R, D] -> float32 [R, D]."""
        checkpoint = joints.to_checkpoint(actions)
        offsets, gripper = [*self._columns('delta'), *self._columns('step')], self._columns('gripper')
        checkpoint[:, offsets] = actions[:, offsets] * joints.scale[offsets]
        checkpoint[:, gripper] = actions[:, gripper]
        return checkpoint

    @property
    def _all_positions(self) -> bool:
        """As for most robots: nothing to convert, which a chunk in a hurry need not wait for."""
        return set(self.kinds) <= {'position'}

    def _columns(self, kind: str) -> list[int]:
        return [column for column, own in enumerate(self.kinds) if own == kind]
