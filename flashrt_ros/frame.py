"""One picture of one camera as it came: the seam between whoever takes frames and whoever reads pixels.

Nodes and bags make frames (`ingest`), the policies read them (`models`, `engine`). Nothing here knows ROS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """A view of memory that somebody else wrote; nothing is copied. It must not be written to.

    The bytes stay as they are for as long as anything refers to `data` (the frame, an array or tensor made of
    it): a ring never gives a slot away whose frame is still alive. Work that reads them in the background,
    such as a GPU stream, therefore keeps the frame until it has finished.

    data: uint8 [N], the `data` field of the message, first pixel first. N, step, width and height are what
    the sender claims and nobody has checked: compare them before reading a pixel. It mostly begins at a
    multiple of 256 bytes; the first frame of a ring, and those of bags, lie anywhere.
    encoding: a name of sensor_msgs/image_encodings; for a compressed picture its free text `format`.
    width, height: pixels. step: bytes from one row to the next. All three are 0 for a compressed picture.
    is_bigendian: of channels wider than 8 bits.
    stamp_ns: when it was taken, of its header; received_ns: when it came in. Both ROS time.
    sequence: counts the frames of one source, dropped ones too, from 1.
    device_address: where the GPU reads data[0] (mapped or device memory); 0 if it cannot.
    """

    data: np.ndarray
    encoding: str
    width: int
    height: int
    step: int
    is_bigendian: bool = False
    stamp_ns: int = 0
    received_ns: int = 0
    frame_id: str = ''
    sequence: int = 0
    device_address: int = 0

    def arrived(self, stamp_ns: int, received_ns: int, sequence: int) -> Frame:
        """Itself with these values. For who has made it before it came, and given it to nobody yet: to make
        it anew takes longer than is left then."""
        for name, value in (('stamp_ns', stamp_ns), ('received_ns', received_ns), ('sequence', sequence)):
            object.__setattr__(self, name, value)
        return self


class FrameSink(Protocol):
    """What a source gives its frames to; `ingest.stream.Stream` is one."""

    def keep(self, frame: Frame) -> None:
        """The newest frame of the camera."""
        ...

    def drop(self, reason: str) -> None:
        """A frame came that cannot be read, and why."""
        ...


class FrameSource(Protocol):
    """Where the frames of one camera come from: a subscription, or GPU buffers of some later middleware."""

    def start(self, sink: FrameSink) -> Callable[[], None]:
        """Give all that comes to `sink`, from one thread at a time, until the returned function is called."""
        ...
