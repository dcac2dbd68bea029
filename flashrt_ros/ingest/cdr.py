"""Where the pixels lie in a serialized sensor_msgs/Image or CompressedImage, without deserializing it.

CDR (OMG DDS-XTypes 1.3, chapter 7.4) aligns every number to its own size, counted from behind the four bytes
of the encapsulation header. Neither message has a number wider than four bytes, so that plain CDR of versions
1 and 2 are the same here. Offsets and lengths come from the sender: nothing is read before it is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

_ENCAPSULATION = 4
_STAMPED = _ENCAPSULATION + 8
"""Where the stamp of the header ends."""

_LITTLE_ENDIAN = {0x0000: False, 0x0001: True, 0x0006: False, 0x0007: True}
"""Encapsulation identifier -> byte order, of plain CDR and plain CDR2."""

_OTHERS = {
    0x0002: 'parameter list CDR',
    0x0003: 'parameter list CDR',
    0x0008: 'delimited CDR2',
    0x0009: 'delimited CDR2',
    0x000A: 'parameter list CDR2',
    0x000B: 'parameter list CDR2',
}

LONGEST_TEXT = 1024
"""Bytes of a frame_id, an encoding or a format; anything longer is not one."""

_SECOND = 1_000_000_000


class MalformedMessage(Exception):
    """Bytes that are not the message that they should be; says what and where."""


class Layout(NamedTuple):
    """What stands around the pixels. offset, size: of the data, in bytes from the encapsulation header on.

    The other fields are those of `Frame`; of a CompressedImage `encoding` is its format and the sizes are 0.
    """

    offset: int
    size: int
    stamp_ns: int
    frame_id: str
    encoding: str
    width: int = 0
    height: int = 0
    step: int = 0
    is_bigendian: bool = False


def image_layout(buffer: Any) -> Layout:
    """buffer: the serialized sensor_msgs/Image, anything that gives its bytes. Raises MalformedMessage."""
    return _image(_Reader(buffer))


def _image(reader: _Reader) -> Layout:
    stamp_ns, frame_id = reader.header()
    height, width = reader.uint32('height'), reader.uint32('width')
    encoding = reader.text('encoding')
    is_bigendian = bool(reader.byte('is_bigendian'))
    step = reader.uint32('step')
    offset, size = reader.sequence('data')
    return Layout(offset, size, stamp_ns, frame_id, encoding, width, height, step, is_bigendian)


def compressed_layout(buffer: Any) -> Layout:
    """buffer: the serialized sensor_msgs/CompressedImage. Raises MalformedMessage."""
    return _compressed(_Reader(buffer))


def _compressed(reader: _Reader) -> Layout:
    stamp_ns, frame_id = reader.header()
    encoding = reader.text('format')
    offset, size = reader.sequence('data')
    return Layout(offset, size, stamp_ns, frame_id, encoding)


def header_stamp_ns(buffer: Any) -> int:
    """buffer: any serialized message that begins with a std_msgs/Header. Raises MalformedMessage."""
    return _Reader(buffer).stamp()


def positions_offset(buffer: Any) -> int:
    """Where the positions of a serialized sensor_msgs/JointState begin, if it is plain CDR of version 1, in
    which doubles stand at multiples of eight bytes. Raises MalformedMessage."""
    reader = _Reader(buffer)
    reader.header()
    for _ in range(reader.uint32('name')):
        reader.text('name')
    reader.uint32('position')
    return reader.aligned(8)


LAYOUTS: dict[str, Callable[[Any], Layout]] = {'raw': image_layout, 'compressed': compressed_layout}
"""Transport of a camera -> how its messages are read."""

_READINGS = {'raw': _image, 'compressed': _compressed}


class Repeated:
    """Reads the messages of one camera, of which mostly nothing but the stamp differs from one to the next.

    What stands in front of the pixels is compared as a whole, and read only where it has changed. Stamp and
    padding do not count: writers leave in the latter what was in their memory before.
    known: the layout that was read last. head: all bytes in front of its data. mask: as many, 0xff for those
    that count and 0 for the others.
    """

    def __init__(self, transport: str) -> None:
        self._read = _READINGS[transport]
        self.known: Layout | None = None
        self.head = self.mask = b''
        self._head_bits = self._mask_bits = 0
        self._stamp = struct.Struct('<iI')

    def __call__(self, buffer: Any) -> Layout:
        """The same as `LAYOUTS[transport](buffer)`."""
        view, known = memoryview(buffer), self.known
        if known is not None and self._repeats(view, known):
            seconds, nanoseconds = self._stamp.unpack_from(view, _ENCAPSULATION)
            return Layout._make((*known[:2], seconds * _SECOND + nanoseconds, *known[3:]))
        reader = _Reader(buffer)
        layout = self.known = self._read(reader)
        mask = bytearray(b'\xff' * layout.offset)
        for begin, end in ((_ENCAPSULATION, _STAMPED), *reader.gaps):
            mask[begin:end] = bytes(end - begin)
        self.head, self.mask, self._mask_bits = bytes(view[: layout.offset]), bytes(mask), _bits(mask)
        self._head_bits = _bits(self.head) & self._mask_bits
        self._stamp = struct.Struct('<iI' if self.head[1] & 1 else '>iI')
        return layout

    def _repeats(self, view: memoryview, known: Layout) -> bool:
        enough = len(view) >= known.offset + known.size
        return enough and _bits(view[: known.offset]) & self._mask_bits == self._head_bits


def _bits(head: bytes | bytearray | memoryview) -> int:
    return int.from_bytes(head, 'little')


class _Reader:
    """Reads one field after the other; where bytes are missing, the error names the field.

    gaps: where padding begins and ends.
    """

    def __init__(self, buffer: Any) -> None:
        self._view = memoryview(buffer).cast('B')
        if len(self._view) < _ENCAPSULATION:
            raise MalformedMessage(f'{len(self._view)} bytes are no serialized message')
        identifier = int.from_bytes(self._view[:2], 'big')
        if identifier not in _LITTLE_ENDIAN:
            name = _OTHERS.get(identifier, 'unknown')
            raise MalformedMessage(f'encapsulation 0x{identifier:04x} ({name}) is not plain CDR')
        order = '<' if _LITTLE_ENDIAN[identifier] else '>'
        self._uint32, self._stamp = struct.Struct(order + 'I'), struct.Struct(order + 'iI')
        self._at, self.gaps = _ENCAPSULATION, list[tuple[int, int]]()

    def header(self) -> tuple[int, str]:
        """std_msgs/Header: the stamp [ns] and the frame_id."""
        return self.stamp(), self.text('header.frame_id')

    def stamp(self) -> int:
        """The first field of a header [ns]."""
        begin = self._claim(8, 'header.stamp')
        seconds, nanoseconds = self._stamp.unpack_from(self._view, begin)
        return int(seconds) * _SECOND + int(nanoseconds)

    def byte(self, field: str) -> int:
        return self._view[self._claim(1, field)]

    def aligned(self, size: int) -> int:
        """Move to the next multiple of `size`, from the encapsulation header on, and return where that is."""
        padding = -(self._at - _ENCAPSULATION) % size
        self.gaps.append((self._at, self._at + padding))
        self._at += padding
        return self._at

    def uint32(self, field: str) -> int:
        self.aligned(4)
        return int(self._uint32.unpack_from(self._view, self._claim(4, field))[0])

    def text(self, field: str) -> str:
        """Its length counts the zero that ends it; some senders leave that out of an empty one."""
        length = self.uint32(field)
        if length > LONGEST_TEXT:
            raise MalformedMessage(f'{field} claims {length} bytes')
        begin = self._claim(length, field)
        return bytes(self._view[begin : begin + length]).partition(b'\0')[0].decode(errors='replace')

    def sequence(self, field: str) -> tuple[int, int]:
        """Offset and length of a sequence of bytes."""
        length = self.uint32(field)
        return self._claim(length, field), length

    def _claim(self, size: int, field: str) -> int:
        """Move past the next `size` bytes and return where they begin."""
        begin, self._at = self._at, self._at + size
        if self._at > len(self._view):
            there = max(0, len(self._view) - begin)
            raise MalformedMessage(f'{field} needs {size} bytes and {there} are left')
        return begin
