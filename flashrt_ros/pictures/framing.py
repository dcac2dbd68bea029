"""What of a camera's picture the policy sees, and which way up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashrt_ros.errors import ObservationError

TURNS = (0, 90, 180, 270)
FLIPS = ('none', 'horizontal', 'vertical')


@dataclass(frozen=True)
class Framing:
    """Cut first, then turned, then mirrored.

    rotate: degrees clockwise that the picture is turned by, so that it stands upright. flip: 'horizontal'
    exchanges left and right of what has been turned, 'vertical' top and bottom. crop: x, y, width and height
    of the part that is kept, in pixels of the frame as it comes; None keeps all.
    """

    rotate: int = 0
    flip: str = 'none'
    crop: tuple[int, int, int, int] | None = None

    def size(self, width: int, height: int, view: str) -> tuple[int, int]:
        """Width and height of what becomes of a frame of that size.

        view: named in errors. Raises ObservationError for a crop beyond the frame.
        """
        _, _, width, height = self._kept(width, height, view)
        return (height, width) if self.rotate in (90, 270) else (width, height)

    def apply(self, pixels: np.ndarray, view: str) -> np.ndarray:
        """[height, width, 3] -> the part that is kept, turned; a copy only if something changes."""
        x, y, width, height = self._kept(pixels.shape[1], pixels.shape[0], view)
        pixels = np.rot90(pixels[y : y + height, x : x + width], -self.rotate // 90)
        if self.flip != 'none':
            pixels = pixels[:, ::-1] if self.flip == 'horizontal' else pixels[::-1]
        return np.ascontiguousarray(pixels)

    def steps(self, width: int, height: int, view: str) -> tuple[tuple[int, int], ...]:
        """Where in the frame the first pixel of the turned picture lies, and what a step along a row and one
        down a column of it are there; each (x, y)."""
        kept = self._kept(width, height, view)
        turned_width, turned_height = self.size(width, height, view)
        first = self._place(0, 0, kept, turned_width, turned_height)
        along = self._place(1, 0, kept, turned_width, turned_height)
        down = self._place(0, 1, kept, turned_width, turned_height)
        return first, _difference(along, first), _difference(down, first)

    def _place(
        self, x: int, y: int, kept: tuple[int, int, int, int], turned_width: int, turned_height: int
    ) -> tuple[int, int]:
        """Pixel (x, y) of the turned picture -> its place in the frame."""
        left, top, width, height = kept
        if self.flip == 'horizontal':
            x = turned_width - 1 - x
        elif self.flip == 'vertical':
            y = turned_height - 1 - y
        column, row = {
            0: (x, y),
            90: (y, height - 1 - x),
            180: (width - 1 - x, height - 1 - y),
            270: (width - 1 - y, x),
        }[self.rotate]
        return left + column, top + row

    def _kept(self, width: int, height: int, view: str) -> tuple[int, int, int, int]:
        if self.crop is None:
            return 0, 0, width, height
        x, y, kept_width, kept_height = self.crop
        if x + kept_width > width or y + kept_height > height:
            raise ObservationError(
                f'the crop of {kept_width} x {kept_height} pixels at ({x}, {y}) reaches beyond '
                f'the frame of {width} x {height}',
                view,
                f'correct cameras.{view}.crop, or the resolution of the camera',
            )
        return self.crop


WHOLE = Framing()


def _difference(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] - b[0], a[1] - b[1]
