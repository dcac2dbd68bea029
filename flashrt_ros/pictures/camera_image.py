"""A frame together with how its camera is mounted: all that decides the pixels a policy sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashrt_ros.frame import Frame
from flashrt_ros.pictures.decode import decode_image
from flashrt_ros.pictures.encodings import check_frame
from flashrt_ros.pictures.framing import WHOLE, Framing


@dataclass(frozen=True, eq=False)
class CameraImage:
    """A raw frame (see `Frame`) that nobody has decoded yet."""

    frame: Frame
    framing: Framing = WHOLE

    def check(self, view: str) -> None:
        """Raises ObservationError unless `array` can be made. view: named in errors. Reads no pixel."""
        check_frame(self.frame, view)
        self.framing.size(self.frame.width, self.frame.height, view)

    def array(self, view: str) -> np.ndarray:
        """uint8 [height, width, 3], RGB, upright. Raises as `check`."""
        return self.framing.apply(decode_image(self.frame, view), view)

    @staticmethod
    def of(pixels: np.ndarray, framing: Framing = WHOLE) -> CameraImage:
        """uint8 [height, width, 3], RGB -> the same as a frame."""
        pixels = np.ascontiguousarray(pixels)
        height, width, _ = pixels.shape
        return CameraImage(Frame(pixels.reshape(-1), 'rgb8', width, height, 3 * width), framing)


def picture_array(image: np.ndarray | CameraImage, view: str) -> np.ndarray:
    """Whichever an observation holds -> uint8 [height, width, 3], RGB, upright."""
    return image.array(view) if isinstance(image, CameraImage) else image
