"""Encodings of sensor_msgs/Image that are understood, and whether a frame is what its header says.

Names and meanings: sensor_msgs/image_encodings.hpp, which names V4L2's pixel formats for YUV. Whatever is not
listed is refused by name: 8UC3 and the like do not say what their channels are.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashrt_ros.errors import ObservationError
from flashrt_ros.frame import Frame

PACKED, YUV422, SEMIPLANAR, BAYER = range(4)
"""Layouts; their numbers are those of kernels/preprocess.cu."""


@dataclass(frozen=True)
class Encoding:
    """How the bytes of a frame make pixels.

    layout: PACKED, all samples of a pixel side by side; YUV422, two pixels in four bytes; SEMIPLANAR, a plane
    of luma and behind it one of chroma with half the rows; BAYER, one colour a pixel by its position.
    samples: in a row, for each pixel. size: bytes of a sample.
    places: PACKED: which samples are red, green and blue. YUV422: bytes of the first luma, u and v among the
    four. SEMIPLANAR: 0, and bytes of u and v among their pair. BAYER: column and row of red in the pattern of
    2 x 2, and 0.
    """

    layout: int
    samples: int
    places: tuple[int, int, int]
    size: int = 1

    def row_bytes(self, width: int) -> int:
        return width * self.samples * self.size

    def rows(self, height: int) -> int:
        """Rows of `step` bytes that a frame of that height has."""
        return height + height // 2 if self.layout == SEMIPLANAR else height


def _table() -> dict[str, Encoding]:
    table = {}
    for bits, size in ((8, 1), (16, 2)):
        table[f'rgb{bits}'] = Encoding(PACKED, 3, (0, 1, 2), size)
        table[f'bgr{bits}'] = Encoding(PACKED, 3, (2, 1, 0), size)
        table[f'rgba{bits}'] = Encoding(PACKED, 4, (0, 1, 2), size)
        table[f'bgra{bits}'] = Encoding(PACKED, 4, (2, 1, 0), size)
        table[f'mono{bits}'] = Encoding(PACKED, 1, (0, 0, 0), size)
    for name in ('uyvy', 'yuv422'):
        table[name] = Encoding(YUV422, 2, (1, 0, 2))
    for name in ('yuyv', 'yuv422_yuy2'):
        table[name] = Encoding(YUV422, 2, (0, 1, 3))
    table['nv12'] = Encoding(SEMIPLANAR, 1, (0, 0, 1))
    table['nv21'] = Encoding(SEMIPLANAR, 1, (0, 1, 0))
    for bits, size in ((8, 1), (16, 2)):
        for pattern, red in (('rggb', (0, 0)), ('grbg', (1, 0)), ('gbrg', (0, 1)), ('bggr', (1, 1))):
            table[f'bayer_{pattern}{bits}'] = Encoding(BAYER, 1, (*red, 0), size)
    return table


ENCODINGS = _table()

SMALLEST_BAYER = 3
"""Pixels a side: the colours of the rim are those of the pixels inside."""


def check_frame(frame: Frame, view: str) -> Encoding:
    """The encoding of a raw frame whose sizes agree with each other, and so may be read.

    view: named in errors. Raises ObservationError.
    """
    encoding = ENCODINGS.get(frame.encoding)
    if encoding is None:
        raise ObservationError(
            f"the encoding '{frame.encoding}' is not supported",
            view,
            f'let the camera driver publish one of {", ".join(ENCODINGS)}',
        )
    width, height, step, row = frame.width, frame.height, frame.step, encoding.row_bytes(frame.width)
    if height == 0 or width == 0:
        raise ObservationError(f'the image is empty ({width} x {height})', view, 'check the camera driver')
    if step < row:
        raise ObservationError(
            f"step {step} is less than the {row} bytes of {width} pixels in '{frame.encoding}'",
            view,
            'let the camera driver set step to the bytes of a row',
        )
    rows = encoding.rows(height)
    if frame.data.size != step * rows:
        halves = f" ({rows} with the chroma of '{frame.encoding}')" if rows != height else ''
        raise ObservationError(
            f'{frame.data.size} bytes of data, but step {step} x height {height}{halves} is {step * rows}',
            view,
            'the message is truncated or its header is wrong: check the camera driver',
        )
    _check_sides(encoding, frame, view)
    return encoding


def _check_sides(encoding: Encoding, frame: Frame, view: str) -> None:
    shared = {YUV422: frame.width, SEMIPLANAR: frame.width | frame.height}.get(encoding.layout, 0)
    if shared % 2:
        raise ObservationError(
            f"{frame.width} x {frame.height} pixels cannot share their chroma in '{frame.encoding}'",
            view,
            'choose an even resolution',
        )
    if encoding.layout == BAYER and min(frame.width, frame.height) < SMALLEST_BAYER:
        raise ObservationError(
            f"{frame.width} x {frame.height} pixels of '{frame.encoding}' show no colour",
            view,
            f'use at least {SMALLEST_BAYER} x {SMALLEST_BAYER}',
        )
