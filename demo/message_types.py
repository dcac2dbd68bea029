"""Message classes by the names that bags use."""

from __future__ import annotations

import importlib
from typing import Any


def message_class(name: str) -> Any:
    """'sensor_msgs/msg/Image' -> the class. Raises ModuleNotFoundError if its package is not there."""
    package, kind, message = name.split('/')
    return getattr(importlib.import_module(f'{package}.{kind}'), message)
