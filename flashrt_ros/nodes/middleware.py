"""Is ROS 2 there at all? Asked before rclpy is imported, because rclpy's own answer is a C-level exit."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

_INDEX = 'share/ament_index/resource_index/rmw_typesupport'
"""Where every installed RMW implementation registers its name, below each entry of AMENT_PREFIX_PATH."""


def require_middleware() -> None:
    """End the process with one sentence if rclpy, the chosen middleware or our messages are missing."""
    if importlib.util.find_spec('rclpy') is None:
        raise SystemExit(
            'flashrt_ros: rclpy is not installed. Source your ROS 2 setup.bash, or run make build.'
        )
    chosen = os.environ.get('RMW_IMPLEMENTATION')
    installed = installed_middlewares()
    if chosen and chosen not in installed and not _loads(chosen):
        known = ', '.join(installed) or 'none found'
        raise SystemExit(
            f"flashrt_ros: RMW_IMPLEMENTATION asks for '{chosen}', which is not installed (but: {known}). "
            'Install it, or unset the variable.'
        )
    if importlib.util.find_spec('flashrt_ros.msg') is None:
        raise SystemExit(
            'flashrt_ros: its messages are not built. Run colcon build and source install/setup.bash.'
        )


def installed_middlewares() -> list[str]:
    """Names of the RMW implementations that the ament index knows."""
    prefixes = [
        Path(prefix) for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if prefix
    ]
    names = {
        entry.name
        for prefix in prefixes
        if (prefix / _INDEX).is_dir()
        for entry in (prefix / _INDEX).iterdir()
    }
    return sorted(names - {'rmw_implementation'})


def _loads(middleware: str) -> bool:
    try:
        ctypes.CDLL(f'lib{middleware}.so')
    except OSError:
        return False
    return True
