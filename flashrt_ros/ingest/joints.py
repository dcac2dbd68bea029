"""Joint order and units: between what ROS calls a joint and what the checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.errors import ObservationError

STATE = 'state'
"""Name of the joint-state input, beside the names of the views."""


class JointMap:
    """Selects joints by name and converts units: checkpoint = scale * ros + offset, column by column.

    names: [D] joints in the checkpoint's order. scale, offset: [D].
    """

    def __init__(self, names: Sequence[str], scale: Sequence[float], offset: Sequence[float]) -> None:
        self.names = tuple(names)
        self._scale = np.asarray(scale, dtype=np.float64)
        self._offset = np.asarray(offset, dtype=np.float64)
        self._columns_of: tuple[list[str], list[int]] = ([], [])

    @classmethod
    def of(cls, config: RobotConfig) -> JointMap:
        joints = config.robot.joints
        return cls(config.joint_names, [joint.scale for joint in joints], [joint.offset for joint in joints])

    def positions(self, message: Any) -> np.ndarray:
        """float64 [D] positions in rad or m, picked by name from a message like sensor_msgs/JointState.

        Raises ObservationError for a joint that is missing, listed twice, or not finite. Others are ignored.
        """
        if len(message.position) != len(message.name):
            raise ObservationError(
                f'{len(message.name)} names but {len(message.position)} positions',
                STATE,
                'publish a position for every joint',
            )
        picked = np.asarray(message.position, dtype=np.float64)[self._columns(list(message.name))]
        if not np.isfinite(picked).all():
            joint, value = next((n, v) for n, v in zip(self.names, picked, strict=True) if not np.isfinite(v))
            raise ObservationError(
                f"the position of joint '{joint}' is {value}", STATE, 'check the encoder or driver'
            )
        return picked

    def to_checkpoint(self, positions: np.ndarray) -> np.ndarray:
        """float64 [..., D] in rad or m -> float32 [..., D] in the checkpoint's units."""
        return (positions * self._scale + self._offset).astype(np.float32)

    @property
    def scale(self) -> np.ndarray:
        """float64 [D]: checkpoint units per rad or m."""
        return self._scale

    def to_ros(self, actions: np.ndarray) -> np.ndarray:
        """float [..., D] in the checkpoint's units -> float64 [..., D] in rad or m."""
        return (np.asarray(actions, dtype=np.float64) - self._offset) / self._scale

    def _columns(self, names: list[str]) -> list[int]:
        """Where each of our joints stands in the message; names rarely change, so the last answer is kept."""
        known_names, columns = self._columns_of
        if names != known_names:
            columns = [self._column(names, joint) for joint in self.names]
            self._columns_of = (names, columns)
        return columns

    @staticmethod
    def _column(names: list[str], joint: str) -> int:
        count = names.count(joint)
        if count == 1:
            return names.index(joint)
        what = (
            f"the joint '{joint}' is missing"
            if count == 0
            else f"the joint '{joint}' is listed {count} times"
        )
        shown = ', '.join(names[:12]) + (', ...' if len(names) > 12 else '')
        raise ObservationError(
            f'{what} (names: {shown or "none"})', STATE, 'make robot.joints match the publisher'
        )
