"""What the markers of a JPEG say, read before any decoder sees it: ITU-T T.81, annex B.

Decides which files are plain enough for a decoder that says little about what it meets. All others go to one
that knows every kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

_BASELINE, _TABLES, _FRAMES = 0xC0, 0xC4, {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SCAN, _JFIF, _ADOBE = 0xDA, 0xE0, 0xEE
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}

_AFTER_SCAN = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
"""A marker other than those inside the coded data of a scan: stuffed FF 00, restarts, fill bytes."""


@dataclass(frozen=True)
class JpegHeader:
    """width, height: as declared [pixels]. plain: baseline, 8 bits a sample, grey or YCbCr, one scan, with
    Huffman tables of its own. scan: where the coded data begin [bytes]."""

    width: int
    height: int
    plain: bool
    scan: int


@dataclass
class _Seen:
    """What came before the first scan. ids: of the components, as the frame names them."""

    frame: int = 0
    precision: int = 0
    size: tuple[int, int] = (0, 0)
    ids: tuple[int, ...] = field(default_factory=tuple)
    tables: bool = False
    jfif: bool = False
    transform: int | None = None

    @property
    def luma_and_chroma(self) -> bool:
        """Whether everybody takes the components for grey or YCbCr; some files hold RGB."""
        if len(self.ids) == 1:
            return True
        named = self.jfif or self.transform == 1 or self.ids == (1, 2, 3)
        return len(self.ids) == 3 and named and self.transform in (None, 1)


def jpeg_header(data: np.ndarray) -> JpegHeader | None:
    """data: uint8 [N], a whole file. None if its markers make no sense up to the first scan."""
    seen, view, position = _Seen(), data.data, 2
    while position + 4 <= len(view):
        if view[position] != 0xFF:
            return None
        marker = view[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        end = position + 2 + int.from_bytes(view[position + 2 : position + 4], 'big')
        segment = bytes(view[position + 4 : end])
        if marker in _WITHOUT_LENGTH or len(segment) != end - position - 4:
            return None
        if marker == _SCAN:
            return _header(seen, segment, end)
        if not _note(seen, marker, segment):
            return None
        position = end
    return None


def scan_end(data: np.ndarray, header: JpegHeader) -> int | None:
    """Where the end marker of a file of one scan ends [bytes]; None if another marker, or none, follows."""
    found = _AFTER_SCAN.search(data.data, header.scan)
    return found.end() if found is not None and found[0][1] == 0xD9 else None


def _note(seen: _Seen, marker: int, segment: bytes) -> bool:
    """False where the segment makes no sense."""
    if marker in _FRAMES:
        if seen.frame or len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
            return False
        seen.frame, seen.precision, seen.ids = marker, segment[0], tuple(segment[6::3])
        seen.size = int.from_bytes(segment[3:5], 'big'), int.from_bytes(segment[1:3], 'big')
    elif marker == _TABLES:
        seen.tables = True
    elif marker == _JFIF and segment.startswith(b'JFIF\0'):
        seen.jfif = True
    elif marker == _ADOBE and segment.startswith(b'Adobe') and len(segment) >= 12:
        seen.transform = segment[11]
    return True


def _header(seen: _Seen, scan: bytes, end: int) -> JpegHeader | None:
    if not seen.frame or not scan:
        return None
    plain = (
        (seen.frame, seen.precision) == (_BASELINE, 8)
        and min(seen.size) > 0
        and seen.tables
        and seen.luma_and_chroma
        and scan[0] == len(seen.ids)
    )
    return JpegHeader(*seen.size, plain, end)
