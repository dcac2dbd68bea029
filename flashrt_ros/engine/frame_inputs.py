"""Camera frames as inputs of a captured graph: kernels/preprocess.cu and what it reads.

    inputs = FrameInputs(library, spec.vision, 'pil', views=2)
    inputs.write({'front': image, 'wrist': image})      # before the graph, when the one before has seen
    inputs.launch(0, 2, patch_rows)                     # what the graph holds

A frame may have any resolution, encoding and address: the first two are copied to the device when they
change, and addresses are looked up by the kernels, so that nothing is ever captured again. Frames in memory
that the GPU can read (`Frame.device_address`) are not touched by the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.weights.packing import patch_columns
from flashrt_ros.errors import ObservationError
from flashrt_ros.models.spec import VisionSpec
from flashrt_ros.pictures import CameraImage, check_frame
from flashrt_ros.pictures.resampling import fitted_size, taps

LONGEST_SIDE = 4096
"""Pixels of a picture after cropping. Longer ones would need more weights and shared memory than there is."""

THREADS = 256
UPLOAD_BLOCKS = 64
"""Of each view; with four loads of 16 bytes a thread they keep more in flight than PCIe carries."""

PIECE = 4096
"""Decoded pixels that a block holds at a time (PIECE in preprocess.cu)."""

GEOMETRY = np.dtype(
    [
        ('data', 'u8'),
        ('bytes', 'i8'),
        ('step', 'i4'),
        ('size', 'i4', 2),
        ('layout', 'i4'),
        ('samples', 'i4'),
        ('wide', 'i4'),
        ('places', 'i4', 3),
        ('first', 'i4', 2),
        ('along', 'i4', 2),
        ('down', 'i4', 2),
        ('fitted', 'i4', 2),
        ('border', 'i4', 2),
        ('unused', 'i4'),
    ]
)
"""Geometry of preprocess.cu; pairs are x before y, width before height. data: written by the GPU."""


@dataclass(frozen=True)
class Sizes:
    """Compile-time sizes of preprocess.cu for one vision tower."""

    size: int
    patch: int
    columns: int

    @classmethod
    def of(cls, spec: VisionSpec) -> Sizes:
        return cls(spec.image_size, spec.patch, patch_columns(spec))

    @property
    def taps(self) -> int:
        """Most pixels that one is made of."""
        return 2 * math.ceil(LONGEST_SIDE / self.size) + 2

    @property
    def constants(self) -> dict[str, int]:
        return {'SIZE': self.size, 'PATCH': self.patch, 'COLUMNS': self.columns, 'TAPS': self.taps}

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks that make a view: across and down."""
        patches = self.size // self.patch
        return patches // self.across, patches

    @property
    def across(self) -> int:
        """Patches that one block makes, side by side."""
        return 1 if self.size // self.patch % 2 else 2

    @property
    def shared(self) -> int:
        """Bytes of shared memory. Fitting truncates, which stretches fourteen rows by one in fourteen."""
        rows = math.ceil((self.patch + 3) * LONGEST_SIDE / self.size) + 3
        return 4 * (PIECE + rows * self.across * self.patch)


class FrameInputs:
    """The frames of up to `views` views. Whoever writes them keeps them until the launches have finished.

    stream: of the launches, where it is not the current one when something is written.
    """

    def __init__(
        self,
        library: KernelLibrary,
        spec: VisionSpec,
        resize: str,
        views: int,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self._stream = stream
        self.sizes, self._resize = Sizes.of(spec), resize
        self._device = library.gpu.device
        self._upload = library.kernel('preprocess', 'upload', **self.sizes.constants)
        self._kernel = library.kernel('preprocess', f'preprocess_{resize}', **self.sizes.constants)
        self._geometry = _Mirrored((views, GEOMETRY.itemsize), torch.uint8, self._device)
        self._fields = self._geometry.host.numpy().view(GEOMETRY)[:, 0]
        self._places = pinned_zeros((views, 2), torch.int64)  # FramePlace of preprocess.cu: source, data
        self._places_array = self._places.numpy()
        entries = (views, 2, self.sizes.size, 2 + self.sizes.taps)
        self._tables = _Mirrored(entries, torch.int32, self._device)
        self._lengths: dict[tuple[int, int], tuple[int, int]] = {}
        self._pinned = [torch.empty(0, dtype=torch.uint8) for _ in range(views)]
        self._staged = [torch.empty(0, dtype=torch.uint8) for _ in range(views)]
        self._rooms = [(0, 0)] * views  # bytes and address of what is staged
        self._written: list[tuple[object, ...]] = [()] * views
        for view in range(views):
            self.write_view(view, 'warm-up', CameraImage.of(np.zeros((3, 4, 3), np.uint8)))

    def write(self, images: Mapping[str, CameraImage]) -> None:
        """Prepare these frames, in this order, for `launch(0, len(images), ...)`.

        Raises ObservationError, which names the view.
        """
        for slot, (view, image) in enumerate(images.items()):
            self.write_view(slot, view, image)

    def launch(self, first: int, count: int, out: Tensor) -> None:
        """Slots from `first` on -> patch rows bf16 [count * patches, columns]. May be captured."""
        slots = slice(first, first + count)
        geometry, tables = self._geometry.device[slots], self._tables.device[slots]
        self._upload((UPLOAD_BLOCKS, count), THREADS, geometry, self._places[slots])
        shared = self.sizes.shared if self._resize == 'pil' else 0
        grid = (*self.sizes.grid, count)
        self._kernel(grid, THREADS, geometry, tables, out, shared=shared, dependent=True)

    def write_view(self, slot: int, view: str, image: CameraImage) -> None:
        """See `write`."""
        source, data = self._addresses(slot, image)
        shape = _shape(image)
        if shape != self._written[slot]:  # it hardly ever changes
            self._written[slot] = ()
            self._write_geometry(slot, view, image)
            self._written[slot] = shape
        self._places_array[slot] = source, data

    def _write_geometry(self, slot: int, view: str, image: CameraImage) -> None:
        frame, size = image.frame, self.sizes.size
        encoding = check_frame(frame, view)
        width, height = image.framing.size(frame.width, frame.height, view)
        fitted = fitted_size(width, height, size, view)
        self._write_tables(slot, (width, height), fitted, view)
        first, along, down = image.framing.steps(frame.width, frame.height, view)
        wide = 0 if encoding.size == 1 else 1 + frame.is_bigendian
        border = (size - fitted[0]) // 2, (size - fitted[1]) // 2
        self._fields[slot] = (
            0,
            frame.data.size,
            frame.step,
            (frame.width, frame.height),
            encoding.layout,
            encoding.samples,
            wide,
            encoding.places,
            first,
            along,
            down,
            fitted,
            border,
            0,
        )
        with torch.cuda.stream(self._stream):
            self._geometry.send(slot)

    def _write_tables(self, slot: int, lengths: tuple[int, int], fitted: tuple[int, int], view: str) -> None:
        """Weights for each new resolution. lengths: width and height of the upright picture."""
        for axis in (0, 1):
            pair = lengths[axis], fitted[axis]
            if self._lengths.get((slot, axis)) == pair:
                continue
            table = taps(*pair, self._resize)
            count = table.weights.shape[1]
            if max(lengths) > LONGEST_SIDE or count > self.sizes.taps:
                raise ObservationError(
                    f'a picture of {lengths[0]} x {lengths[1]} pixels is too large or too narrow for the GPU',
                    view,
                    f'use at most {LONGEST_SIDE} pixels a side, or crop it',
                )
            entries = self._tables.host[slot, axis].numpy()
            entries[: pair[1], 0], entries[: pair[1], 1] = table.first, table.count
            entries[: pair[1], 2 : 2 + count] = table.weights.view(np.int32)
            with torch.cuda.stream(self._stream):
                self._tables.send((slot, axis))
            self._lengths[slot, axis] = pair

    def _addresses(self, slot: int, image: CameraImage) -> tuple[int, int]:
        """Where the GPU finds the frame, and where the kernel reads it after the upload."""
        frame = image.frame
        source = frame.device_address
        if not source:
            pinned = self._pinned[slot]
            if pinned.numel() < frame.data.size:
                pinned = self._pinned[slot] = pinned_zeros((frame.data.size,), torch.uint8)
            pinned.numpy()[: frame.data.size] = frame.data
            source = pinned.data_ptr()
        room, staged = self._rooms[slot]
        if room < frame.data.size + 16:
            staged = self._make_room(slot, frame.data.size + 16)
        return source, staged + source % 16

    def _make_room(self, slot: int, size: int) -> int:
        with torch.cuda.stream(self._stream):  # whose work may go on when the memory before is freed
            memory = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._staged[slot], self._rooms[slot] = memory, (size, memory.data_ptr())
        return self._rooms[slot][1]


def _shape(image: CameraImage) -> tuple[object, ...]:
    """All that the geometry of a frame is made of, except for where it lies."""
    frame = image.frame
    sizes = frame.width, frame.height, frame.step, frame.data.size
    return (*sizes, frame.encoding, frame.is_bigendian, image.framing)


class _Mirrored:
    """Small data that the host writes and the device reads: pinned, and its copy."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.host = pinned_zeros(shape, dtype)
        self.device = torch.zeros(shape, dtype=dtype, device=device)

    def send(self, part: int | tuple[int, int]) -> None:
        self.device[part].copy_(self.host[part], non_blocking=True)


def pinned_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Host memory that the GPU reads, at the same address."""
    return torch.zeros(shape, dtype=dtype, pin_memory=True)
