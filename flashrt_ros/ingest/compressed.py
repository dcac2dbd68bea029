"""sensor_msgs/CompressedImage to RGB pixels, straight into a slot of a ring.

The `format` field is free text, so the magic bytes decide. JPEG goes to the GPU where the caller has a
decoder there; what that leaves, to libjpeg-turbo by simplejpeg, which writes where it is told to and warns of
everything odd. A warning of damage is a refusal. What has other warnings, PNG, and all where simplejpeg is
not installed, goes to Pillow, which refuses a truncated file, but fills what is missing inside one with grey
and returns it as a picture. Pillow and libjpeg-turbo give the same pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
from PIL import Image

from flashrt_ros.errors import ObservationError
from flashrt_ros.frame import Frame
from flashrt_ros.ingest.cdr import Layout
from flashrt_ros.ingest.ring import FrameRing

try:
    import simplejpeg
except ImportError:  # no distribution of ROS packages it
    simplejpeg = None

Image.preinit()  # else a first frame, compressed or to be resized, waits for Pillow's imports

_MAGIC = {b'\xff\xd8\xff': 'JPEG', b'\x89PNG\r\n\x1a\n': 'PNG'}
_MODES = ('RGB', 'RGBA', 'L')
"""Pillow's names of 8-bit colour, colour with transparency, and grey."""

_COLOURS = ('YCbCr', 'RGB', 'Gray')
"""The same of a JPEG, as libjpeg-turbo names what is stored."""

CPU_DECODER = 'libjpeg-turbo' if simplejpeg is not None else 'Pillow'

Pixels = Callable[[int, int], np.ndarray]
"""Height and width of a picture -> where its pixels go: uint8 [height, width, 3]. Raises ObservationError."""

_DAMAGE = 'Corrupt JPEG data'
_LEFT_OVER = re.compile(r'Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9')
"""Every pixel is there, and then come so many bytes before the end marker."""

FEW_BYTES = 16
"""Left over by many webcams. More of them were pixels once, unless they are all the same."""

MAX_PIXELS = 3840 * 2160
"""Largest picture accepted; a few corrupt bytes in a header can otherwise demand gigabytes."""


class JpegDecoder(Protocol):
    """Of one camera, beside the CPU. trouble: why it does nothing any more; '' while it works."""

    trouble: str

    def __call__(self, data: np.ndarray, pixels: Pixels) -> bool:
        """Write the pixels of a file, uint8 [N]; False where it had rather leave that to the CPU."""
        ...


def decompress(
    frame: Frame, view: str, ring: FrameRing | None = None, gpu: JpegDecoder | None = None
) -> Frame:
    """Compressed frame -> the same as an rgb8 frame without padding.

    view: named in errors. ring: for the pixels; without one, or while all its slots are in use, they get
    memory of their own. gpu: decodes the JPEGs that it takes.
    Raises ObservationError for anything but a whole JPEG or PNG of 8 bits a channel.
    """
    kind = _kind(frame, view)
    target = _Target(frame, view, ring)
    try:
        if kind == 'JPEG' and gpu is not None and gpu(frame.data, target.pixels):
            return target.frame
        if kind != 'JPEG' or simplejpeg is None or not _by_turbo(frame.data, target.pixels):
            _by_pillow(frame.data, kind, target.pixels, view)
    except ObservationError:
        raise
    # Pillow lets through whatever its parsers meet: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise ObservationError(
            f'corrupt {kind} of {frame.data.size} bytes ({error})',
            view,
            'check the camera and its connection',
        ) from error
    return target.frame


def decode_compressed(frame: Frame, view: str) -> np.ndarray:
    """Compressed frame -> uint8 [height, width, 3], RGB. Raises as `decompress`."""
    picture = decompress(frame, view)
    return picture.data.reshape(picture.height, picture.width, 3)


class _Target:
    """Where the pixels of one picture go, once its size is known. frame: what became of it."""

    def __init__(self, source: Frame, view: str, ring: FrameRing | None) -> None:
        self._source, self._view, self._ring = source, view, ring
        self.frame = source

    def pixels(self, height: int, width: int) -> np.ndarray:
        """See `Pixels`."""
        if width * height > MAX_PIXELS:
            raise ObservationError(
                f'{width} x {height} pixels are more than 3840 x 2160', self._view, 'use a smaller resolution'
            )
        source, size = self._source, height * width * 3
        slot = None if self._ring is None else self._ring.free_slot()
        if self._ring is None or slot is None or not self._ring.make_room(slot, size):
            memory = np.empty(size, np.uint8)
            self.frame = replace(
                source, data=memory, encoding='rgb8', width=width, height=height, step=3 * width
            )
        else:
            layout = Layout(0, size, source.stamp_ns, source.frame_id, 'rgb8', width, height, 3 * width)
            self.frame = self._ring.frame(slot, layout, source.received_ns, source.sequence)
        return self.frame.data.reshape(height, width, 3)


def _kind(frame: Frame, view: str) -> str:
    begin = frame.data[:8].tobytes()
    kind = next((name for magic, name in _MAGIC.items() if begin.startswith(magic)), None)
    if kind is None:
        raise ObservationError(
            f"neither JPEG nor PNG (format '{frame.encoding}', {frame.data.size} bytes, "
            f'first bytes {begin[:4].hex() or "none"})',
            view,
            'let the camera publish JPEG or PNG',
        )
    return kind


def _by_turbo(data: np.ndarray, pixels: Pixels) -> bool:
    """False where libjpeg-turbo has anything harmless to say about the file; raises where it saw damage."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if colours not in _COLOURS:
            return False
        simplejpeg.decode_jpeg(data, 'RGB', buffer=pixels(height, width), strict=True)
    except ValueError as error:
        if _DAMAGE in str(error) and not _harmless(str(error), data):
            raise
        return False
    return True


def _harmless(warning: str, data: np.ndarray) -> bool:
    """Whether libjpeg-turbo warned of no more than what some cameras leave before the end marker."""
    found = _LEFT_OVER.search(warning)
    if found is None:
        return False
    count, file = int(found[1]), data.tobytes()
    end = file.rfind(b'\xff\xd9')
    return count <= FEW_BYTES or len(set(file[end - count : end])) == 1


def _by_pillow(data: np.ndarray, kind: str, pixels: Pixels, view: str) -> None:
    with Image.open(io.BytesIO(data.tobytes()), formats=(kind,)) as picture:
        width, height = picture.size
        if picture.mode not in _MODES:
            raise ObservationError(
                f"a {kind} of mode '{picture.mode}' is not an 8-bit colour or grey image",
                view,
                'publish 8-bit RGB, RGBA or grey',
            )
        into = pixels(height, width)
        np.copyto(into, np.asarray(picture if picture.mode == 'RGB' else picture.convert('RGB')))
