"""The project's own messages for readers and writers of bags that have no ROS."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from flashrt_ros.errors import FlashRTError

CHUNK, STATS = 'flashrt_ros/msg/ActionChunk', 'flashrt_ros/msg/InferenceStats'

_PACKAGE = Path(__file__).resolve().parents[1]


@cache
def known_types() -> Any:
    """A rosbags type store with ROS 2's common messages and this project's. Raises FlashRTError without
    them."""
    # An installation carries the definitions in `interfaces`; in a working tree they are beside the package.
    found = [*_PACKAGE.glob('interfaces/*.msg')] or [*_PACKAGE.parent.glob('msg/*.msg')]
    if not found:
        raise FlashRTError(
            'this installation of flashrt_ros lacks its message definitions',
            str(_PACKAGE / 'interfaces'),
            'install the package again',
        )
    types = get_typestore(Stores.ROS2_JAZZY)
    for file in sorted(found):
        types.register(get_types_from_msg(file.read_text(), f'flashrt_ros/msg/{file.stem}'))
    return types


def make(kind: str, **fields: Any) -> Any:
    """A message. Fields that are not given must not exist."""
    return known_types().types[kind](**fields)


def time_of(nanoseconds: int) -> Any:
    """builtin_interfaces/Time."""
    return make('builtin_interfaces/msg/Time', sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def duration_of(nanoseconds: int) -> Any:
    """builtin_interfaces/Duration."""
    return make('builtin_interfaces/msg/Duration', sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def joint_state_at(nanoseconds: int, names: list[str], positions: np.ndarray) -> Any:
    """sensor_msgs/JointState with positions only, [D], rad or m."""
    empty = np.zeros(0)
    fields = {'position': np.asarray(positions, dtype=np.float64), 'velocity': empty, 'effort': empty}
    return make('sensor_msgs/msg/JointState', header=header_at(nanoseconds), name=names, **fields)


def header_at(nanoseconds: int, frame: str = '') -> Any:
    """std_msgs/Header."""
    return make('std_msgs/msg/Header', stamp=time_of(nanoseconds), frame_id=frame)
