"""A raw frame as an RGB array, in numpy. To the bit as OpenCV has it, which cv_bridge follows:

- 16 bits become 8 by v / 257, rounded: the whole range, whatever the camera fills of it.
- YUV is BT.601 in limited range (luma 16 to 235), in 20-bit fixed point; pixels that share their chroma all
  have it as it is.
- Bayer is interpolated bilinearly, in as many bits as it has; a pixel on the rim is like the one inside.
"""

from __future__ import annotations

import numpy as np

from flashrt_ros.frame import Frame
from flashrt_ros.pictures.encodings import BAYER, PACKED, YUV422, Encoding, check_frame

SHIFT = 20
LUMA, RED_V, GREEN_U, GREEN_V, BLUE_U = 1220542, 1673527, -409993, -852492, 2116026
"""ITU-R BT.601-7 in units of 2^-20: 255 / 219, and 255 / 224 times 1.402, -0.344, -0.714 and 1.772."""


def decode_image(frame: Frame, view: str) -> np.ndarray:
    """Raw frame -> uint8 [height, width, 3], RGB. Shares the frame's memory where it is rgb8.

    view: named in errors.
    Raises ObservationError for an unsupported encoding or for sizes that contradict each other.
    """
    encoding = check_frame(frame, view)
    if encoding.layout == PACKED:
        return _packed(frame, encoding)
    if encoding.layout == BAYER:
        return _eight_bits(_from_bayer(_samples(frame, encoding)[..., 0].astype(np.int32), encoding))
    return _yuv422(frame, encoding) if encoding.layout == YUV422 else _semiplanar(frame, encoding)


def _samples(frame: Frame, encoding: Encoding) -> np.ndarray:
    """A view [height, width, samples] of the rows without their padding, in the byte order of the frame."""
    order = '>' if frame.is_bigendian else '<'
    return np.ndarray(
        (frame.height, frame.width, encoding.samples),
        dtype=f'{order}u{encoding.size}',
        buffer=frame.data,
        strides=(frame.step, encoding.samples * encoding.size, encoding.size),
    )


def _packed(frame: Frame, encoding: Encoding) -> np.ndarray:
    samples = _samples(frame, encoding)
    if encoding.places == (0, 1, 2):
        samples = samples[..., :3]
        if encoding.samples == 3 and encoding.size == 1:
            return samples
    elif encoding.samples == 1:
        return np.repeat(_eight_bits(samples), 3, axis=2)
    else:
        samples = samples[..., encoding.places]
    return np.ascontiguousarray(_eight_bits(samples))


def _eight_bits(samples: np.ndarray) -> np.ndarray:
    """Values of 8 bits as they are, of 16 bits over 257, rounded to the nearest."""
    if samples.dtype.itemsize == 1:
        return samples
    return ((samples.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)


def _yuv422(frame: Frame, encoding: Encoding) -> np.ndarray:
    first, u, v = encoding.places
    fours = _samples(frame, encoding).reshape(frame.height, frame.width // 2, 4)
    pixels = _from_yuv(fours[..., first::2], _chroma(fours[..., u], fours[..., v])[:, :, None])
    return pixels.reshape(frame.height, frame.width, 3)


def _semiplanar(frame: Frame, encoding: Encoding) -> np.ndarray:
    height, width, (_, u, v) = frame.height, frame.width, encoding.places
    rows = np.ndarray((height + height // 2, width), np.uint8, frame.data, strides=(frame.step, 1))
    pairs = rows[height:].reshape(height // 2, width // 2, 2)
    luma = rows[:height].reshape(height // 2, 2, width // 2, 2)
    pixels = _from_yuv(luma, _chroma(pairs[..., u], pairs[..., v])[:, None, :, None])
    return pixels.reshape(height, width, 3)


def _chroma(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """uint8 [...] -> int32 [..., 3]: what u and v add to red, green and blue, and a half."""
    u, v = u.astype(np.int32) - 128, v.astype(np.int32) - 128
    parts = (RED_V * v, GREEN_U * u + GREEN_V * v, BLUE_U * u)
    return np.stack(parts, axis=-1) + np.int32(1 << (SHIFT - 1))


def _from_yuv(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """uint8 [...], int32 [..., 3] or broadcast to it -> uint8 [..., 3]."""
    scaled = np.maximum(luma.astype(np.int32) - 16, 0) * np.int32(LUMA)
    return ((scaled[..., None] + chroma) >> SHIFT).clip(0, 255).astype(np.uint8)


def _from_bayer(raw: np.ndarray, encoding: Encoding) -> np.ndarray:
    """int32 [height, width] -> [height, width, 3] of the samples' size."""
    inner = raw[1:-1, 1:-1]
    left, right, up, down = raw[1:-1, :-2], raw[1:-1, 2:], raw[:-2, 1:-1], raw[2:, 1:-1]
    across, along = (left + right + 1) >> 1, (up + down + 1) >> 1
    cross = (left + right + up + down + 2) >> 2
    corners = (raw[:-2, :-2] + raw[:-2, 2:] + raw[2:, :-2] + raw[2:, 2:] + 2) >> 2
    pixels = np.empty((*inner.shape, 3), np.uint8 if encoding.size == 1 else np.uint16)
    red_column, red_row, _ = encoding.places
    for row in (0, 1):
        for column in (0, 1):
            on_red_row, on_red_column = (row + 1) % 2 == red_row, (column + 1) % 2 == red_column
            if on_red_row and on_red_column:
                colours = inner, cross, corners
            elif on_red_row:
                colours = across, inner, along
            elif on_red_column:
                colours = along, inner, across
            else:
                colours = corners, cross, inner
            for channel, values in enumerate(colours):
                pixels[row::2, column::2, channel] = values[row::2, column::2]
    return np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode='edge')
