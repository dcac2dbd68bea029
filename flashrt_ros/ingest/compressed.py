"""sensor_msgs/CompressedImage to an RGB array, by Pillow.

The `format` field is free text, so the magic bytes decide. Pillow rather than OpenCV, because it refuses a
truncated file, where OpenCV fills the missing part with grey and returns it as a picture.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from flashrt_ros.errors import ObservationError
from flashrt_ros.frame import Frame

_MAGIC = {b'\xff\xd8\xff': 'JPEG', b'\x89PNG\r\n\x1a\n': 'PNG'}
_MODES = ('RGB', 'RGBA', 'L')
"""Pillow's names of 8-bit colour, colour with transparency, and grey."""

MAX_PIXELS = 3840 * 2160
"""Largest picture accepted; a few corrupt bytes in a header can otherwise demand gigabytes."""


def decode_compressed(frame: Frame, view: str) -> np.ndarray:
    """Compressed frame -> uint8 [height, width, 3], RGB.

    view: named in errors.
    Raises ObservationError for anything but a whole JPEG or PNG of 8 bits a channel.
    """
    data = bytes(frame.data)
    kind = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    if kind is None:
        begin = data[:4].hex() or 'none'
        raise ObservationError(
            f"neither JPEG nor PNG (format '{frame.encoding}', {len(data)} bytes, first bytes {begin})",
            view,
            'let the camera publish JPEG or PNG',
        )
    try:
        return _decoded(data, kind, view)
    except ObservationError:
        raise
    # Pillow lets through whatever its parsers meet: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise ObservationError(
            f'corrupt {kind} of {len(data)} bytes ({error})', view, 'check the camera and its connection'
        ) from error


def _decoded(data: bytes, kind: str, view: str) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=(kind,)) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ObservationError(
                f'{width} x {height} pixels are more than 3840 x 2160', view, 'use a smaller resolution'
            )
        if picture.mode not in _MODES:
            raise ObservationError(
                f"a {kind} of mode '{picture.mode}' is not an 8-bit colour or grey image",
                view,
                'publish 8-bit RGB, RGBA or grey',
            )
        return np.array(picture if picture.mode == 'RGB' else picture.convert('RGB'))
