"""Limits that every command passes: position range and largest step, joint by joint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig


@dataclass(frozen=True)
class Limited:
    """positions: float64 [D], within the limits. position_clamps, step_clamps: how many joints changed."""

    positions: np.ndarray
    position_clamps: int
    step_clamps: int


@dataclass(frozen=True)
class Limits:
    """low, high, step: float64 [D], rad or m; infinite where there is no limit."""

    low: np.ndarray
    high: np.ndarray
    step: np.ndarray

    @classmethod
    def of(cls, config: RobotConfig) -> Limits:
        joints = config.robot.joints
        return cls(
            low=np.array([-np.inf if joint.position_min is None else joint.position_min for joint in joints]),
            high=np.array([np.inf if joint.position_max is None else joint.position_max for joint in joints]),
            step=np.array([np.inf if joint.max_step is None else joint.max_step for joint in joints]),
        )

    def apply(self, target: np.ndarray, previous: np.ndarray) -> Limited:
        """The nearest allowed command to `target` that follows `previous`.

        The step comes last: a joint outside its range is brought back in bounded steps, never in a jump.
        """
        within = np.clip(target, self.low, self.high)
        bounded = np.clip(within, previous - self.step, previous + self.step)
        return Limited(bounded, int((within != target).sum()), int((bounded != within).sum()))
