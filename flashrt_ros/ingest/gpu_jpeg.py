"""JPEG to RGB by nvJPEG, for pictures plain enough that its word can be taken.

The GPU decodes into memory of its own, from where its copy engine takes the pixels to where they belong: the
slot of a ring. Work goes onto a stream of its own with priority, so it neither waits for an inference nor
holds one up for longer than its few kernels take. Whatever is unusual about a file, and whatever nvJPEG has
anything to say about, is left to libjpeg-turbo, which decides what of it is damage. But nvJPEG says nothing
of a scan that lost a part inside and kept its end marker (docs/cameras.md).
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from flashrt_ros.errors import BackendError
from flashrt_ros.ingest.compressed import Pixels
from flashrt_ros.ingest.jpeg_header import jpeg_header, scan_end
from flashrt_ros.ingest.nvjpeg import NvJpeg, NvJpegError

_HIGH_PRIORITY = -1
_WARM_UP = 1280, 720
"""Width and height for which nvJPEG takes its memory ahead of the first frame; it grows where that is too
little."""

_TOLERANCE = 8
"""Of 255, between nvJPEG and the picture of `_warm_up`, which is smooth."""

_FAILURES = 3
"""So many one after the other, none of them the file's fault, are the GPU's or the library's."""


class GpuJpeg:
    """A `JpegDecoder`; one thread at a time, and none once the library is closed."""

    def __init__(self, library: NvJpeg) -> None:
        self._library = library
        self.trouble, self._failures = '', 0
        self._state = library.state()
        self._stream = torch.cuda.Stream(priority=_HIGH_PRIORITY)
        self._staged = torch.empty(0, dtype=torch.uint8, device='cuda')
        self._warm_up()

    def __call__(self, data: np.ndarray, pixels: Pixels) -> bool:
        """See `JpegDecoder`. Raises nothing but what `pixels` does."""
        if self.trouble or not self._library.close.alive:
            return False
        header = jpeg_header(data)
        if header is None or not header.plain:
            return False
        end = scan_end(data, header)
        if end is None:
            return False
        into = pixels(header.height, header.width).reshape(-1)  # first of all: it refuses what is too large
        try:
            if self._library.size(data[:end]) != (header.width, header.height):
                return False
            self._decode(data[:end], header.width, torch.from_numpy(into))
        except NvJpegError as error:
            self._failures += not error.of_the_file
            self.trouble = str(error) if self._failures == _FAILURES else ''
            return False
        except RuntimeError as error:  # torch's, of CUDA
            self.trouble = str(error).partition('\n')[0]
            return False
        self._failures = 0
        return True

    def _decode(self, data: np.ndarray, width: int, into: torch.Tensor) -> None:
        """into: uint8 [N] in memory of the host."""
        if self._staged.numel() < into.numel():
            self._staged = torch.empty(into.numel(), dtype=torch.uint8, device='cuda')
        try:
            with torch.cuda.stream(self._stream):
                self._state.decode(data, self._staged.data_ptr(), width, self._stream.cuda_stream)
                into.copy_(self._staged[: into.numel()], non_blocking=True)
        finally:
            self._stream.synchronize()  # nothing reads the file or writes the pixels any more

    def _warm_up(self) -> None:
        """Load kernels, take memory, and see whether what comes out is the picture that went in."""
        width, height = _WARM_UP
        picture, file = smooth_picture(width, height), io.BytesIO()
        Image.fromarray(picture).save(file, 'JPEG', quality=95)
        out = np.zeros_like(picture)
        data = np.frombuffer(file.getvalue(), np.uint8)
        decoded = self(data, lambda height, width: out)
        error = int(np.abs(out.astype(np.int16) - picture).max())
        if not decoded or error > _TOLERANCE:
            why = self.trouble or (f'an error of {error} of 255' if decoded else 'it refuses a plain JPEG')
            raise BackendError(
                f'nvJPEG fails its first picture ({why})', 'nvJPEG', "choose ingest.decode 'cpu'"
            )


def smooth_picture(width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: a picture that JPEG keeps within a few steps."""
    rows, columns = np.mgrid[0:height, 0:width]
    parts = rows * 255 // height, columns * 255 // width, (rows + columns) * 255 // (height + width)
    return np.stack(parts, axis=-1).astype(np.uint8)
