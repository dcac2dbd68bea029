"""NVIDIA's nvJPEG, of the wheel nvidia-nvjpeg or a CUDA toolkit: its C interface, as far as decoding goes.

Its calls release the GIL. A handle may be used by any thread, a state by one at a time.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from ctypes import POINTER, byref, c_int, c_size_t, c_uint, c_void_p
from typing import Any

import numpy as np
import torch

from flashrt_ros.errors import BackendError

_HYBRID = 1
"""nvjpegBackend_t: Huffman codes on the CPU, all else on the GPU. On an H100 no other was clearly faster,
idle and beside a busy GPU, and none said more of damage (benchmarks/notes.md)."""

_STRICT, _INTERPOLATED = 1 << 2, 1 << 5
"""Flags of a handle: refuse what breaks the standard; interpolate chroma, as libjpeg-turbo does."""

_RGB = 5
"""NVJPEG_OUTPUT_RGBI: three bytes a pixel."""

_COMPONENTS = 4
_STATUS = (
    'success',
    'not initialized',
    'invalid parameter',
    'bad JPEG',
    'JPEG not supported',
    'allocator failure',
    'execution failed',
    'architecture mismatch',
    'internal error',
    'implementation not supported',
    'incomplete bitstream',
)
"""nvjpegStatus_t in order."""

_OF_THE_FILE = {'bad JPEG', 'JPEG not supported', 'implementation not supported', 'incomplete bitstream'}


class NvJpegError(Exception):
    """of_the_file: nvJPEG does not want the file; else the GPU or the library failed."""

    def __init__(self, call: str, status: int) -> None:
        name = _STATUS[status] if status < len(_STATUS) else str(status)
        self.of_the_file = name in _OF_THE_FILE
        super().__init__(f'{call}: {name}')


class _Image(ctypes.Structure):
    """nvjpegImage_t."""

    _fields_ = (('channel', c_void_p * _COMPONENTS), ('pitch', c_size_t * _COMPONENTS))


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    'nvjpegGetProperty': (c_int, POINTER(c_int)),
    'nvjpegCreateEx': (c_int, c_void_p, c_void_p, c_uint, POINTER(c_void_p)),
    'nvjpegDestroy': (c_void_p,),
    'nvjpegJpegStateCreate': (c_void_p, POINTER(c_void_p)),
    'nvjpegJpegStateDestroy': (c_void_p,),
    'nvjpegGetImageInfo': (c_void_p, c_void_p, c_size_t, *4 * (POINTER(c_int),)),
    'nvjpegDecode': (c_void_p, c_void_p, c_void_p, c_size_t, c_int, POINTER(_Image), c_void_p),
}


class NvJpeg:
    """The library and the states that were made with it. Raises BackendError where it cannot be had.

    close: frees both, once; the owner calls it when no thread decodes any more. Else it is done when nobody
    refers to library and states, or at the end of the interpreter. It is one call for all, because states
    must go before their handle, and the order in which garbage is collected is any.
    """

    def __init__(self) -> None:
        self._calls, self.handle, self.states = _load(), c_void_p(), list[c_void_p]()
        try:
            self.call('nvjpegCreateEx', _HYBRID, None, None, _STRICT | _INTERPOLATED, byref(self.handle))
        except NvJpegError as error:
            raise BackendError(
                f'nvJPEG does not start ({error})',
                'nvJPEG',
                "update the NVIDIA driver, or choose ingest.decode 'cpu'",
            ) from error
        self.close = weakref.finalize(self, _destroy, self._calls, self.handle, self.states)

    @property
    def version(self) -> str:
        """For example 13.0.4."""
        parts = [c_int() for _ in range(3)]
        for index, part in enumerate(parts):
            self.call('nvjpegGetProperty', index, byref(part))
        return '.'.join(str(part.value) for part in parts)

    def call(self, name: str, *arguments: Any) -> None:
        """Raises NvJpegError."""
        status = getattr(self._calls, name)(*arguments)
        if status:
            raise NvJpegError(name, status)

    def size(self, data: np.ndarray) -> tuple[int, int]:
        """Width and height of a file as nvJPEG will decode it [pixels]. data: uint8 [N]."""
        widths, heights = (c_int * _COMPONENTS)(), (c_int * _COMPONENTS)()
        components, subsampling = c_int(), c_int()
        self.call(
            'nvjpegGetImageInfo',
            self.handle,
            data.ctypes.data,
            data.size,
            byref(components),
            byref(subsampling),
            widths,
            heights,
        )
        return widths[0], heights[0]

    def state(self) -> NvJpegState:
        return NvJpegState(self)


class NvJpegState:
    """What nvJPEG keeps from one file to the next, of one thread at a time."""

    def __init__(self, library: NvJpeg) -> None:
        self._library, self._state = library, c_void_p()
        library.call('nvjpegJpegStateCreate', library.handle, byref(self._state))
        library.states.append(self._state)

    def decode(self, data: np.ndarray, address: int, width: int, stream: int) -> None:
        """Queue the pixels of a file for `address`, which the GPU writes to, three bytes each without
        padding. data: uint8 [N], to stay until the stream is done. stream: its handle. Raises NvJpegError."""
        image, library = _Image(), self._library
        image.channel[0], image.pitch[0] = address, 3 * width
        source = c_void_p(data.ctypes.data)
        whole = source, data.size, _RGB, byref(image), stream
        library.call('nvjpegDecode', library.handle, self._state, *whole)


def _destroy(calls: Any, handle: c_void_p, states: list[c_void_p]) -> None:
    """Nothing where CUDA has gone before: its memory went with it."""
    if not _context_lives():
        return
    for state in states:
        calls.nvjpegJpegStateDestroy(state)
    calls.nvjpegDestroy(handle)


def _context_lives() -> bool:
    """Asks the driver; the runtime would make a new context instead of saying no."""
    try:
        driver = ctypes.CDLL('libcuda.so.1')
    except OSError:
        return False
    flags, active = c_uint(), c_int()
    failed = driver.cuDevicePrimaryCtxGetState(torch.cuda.current_device(), byref(flags), byref(active))
    return not failed and bool(active.value)


@functools.cache
def _load() -> Any:
    path = _path()
    try:
        calls = ctypes.CDLL(path)
        for name, arguments in _SIGNATURES.items():
            getattr(calls, name).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise BackendError(
            f'there is no usable nvJPEG ({error})', 'nvJPEG', 'pip install nvidia-nvjpeg, or make cuda'
        ) from error
    return calls


def _path() -> str:
    """The library that cuda-pathfinder finds among wheels and toolkits; else what the linker finds."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return str(load_nvidia_dynamic_lib('nvjpeg').abs_path)
    except (ImportError, RuntimeError):  # DynamicLibNotFoundError is one
        major = (torch.version.cuda or '13').partition('.')[0]
        return f'libnvjpeg.so.{major}'
