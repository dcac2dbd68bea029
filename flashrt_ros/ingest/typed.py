"""Frames of deserialized messages: where they cannot be taken as they come, and those of bags.

Messages are read by their fields alone; a frame shares the memory of its message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flashrt_ros.frame import Frame
from flashrt_ros.ingest.stream import stamp_ns


def image_frame(message: Any, received_ns: int = 0, sequence: int = 0) -> Frame:
    """message: has the fields of sensor_msgs/Image."""
    return Frame(
        data=np.frombuffer(message.data, np.uint8),
        encoding=message.encoding,
        width=int(message.width),
        height=int(message.height),
        step=int(message.step),
        is_bigendian=bool(message.is_bigendian),
        stamp_ns=stamp_ns(message.header.stamp),
        received_ns=received_ns,
        frame_id=message.header.frame_id,
        sequence=sequence,
    )


def compressed_frame(message: Any, received_ns: int = 0, sequence: int = 0) -> Frame:
    """message: has the fields of sensor_msgs/CompressedImage."""
    return Frame(
        data=np.frombuffer(message.data, np.uint8),
        encoding=message.format,
        width=0,
        height=0,
        step=0,
        stamp_ns=stamp_ns(message.header.stamp),
        received_ns=received_ns,
        frame_id=message.header.frame_id,
        sequence=sequence,
    )


FRAMES: dict[str, Callable[[Any, int, int], Frame]] = {'raw': image_frame, 'compressed': compressed_frame}
"""Transport of a camera -> how its messages become frames."""
