"""The CUDA driver behind the launcher: torch's primary context, its streams, and loaded cubins.

pycuda loads modules and launches plain kernels; it exposes no module or function handles and no launch
attributes, so cuda-bindings loads the same cubin again for kernels that need them. Both work on torch's
primary context.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.errors import BackendError

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: no implicit waiting for the legacy default stream."""

ALL_SHARED = 100
"""Per cent of the first-level memory that every kernel asks for as shared memory, needed or not: a
multiprocessor changes the split only when it is empty, so kernels with different wishes could not overlap."""

_IDLE_STREAMS: dict[int, list[Any]] = defaultdict(list)
"""By GPU. They are used again, because torch keeps a workspace of cuBLAS, on an H100 35 MB, for every stream
that ever multiplied, until the process ends."""


class DeviceContext:
    """torch's primary context on one GPU, known to pycuda, and the streams that both may use."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        torch.cuda.init()
        torch.empty(1, device=gpu.device)
        self._cuda = _import_pycuda()
        self._cuda.init()
        self._context = self._cuda.Device(gpu.index).retain_primary_context()
        keep_forever(self._context)
        self._streams: dict[int, Any] = {0: None}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the context pycuda's current one; pycuda keeps a stack for each thread."""
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def new_stream(self) -> torch.cuda.Stream:
        """A non-blocking stream that pycuda and torch share, and nobody else has."""
        idle = _IDLE_STREAMS[self.gpu.index]
        stream = idle.pop() if idle else self._make_stream()
        self._streams[stream.handle] = stream
        return torch.cuda.ExternalStream(stream.handle, device=self.gpu.device)

    def return_stream(self, stream: torch.cuda.Stream) -> None:
        """Leave a stream of `new_stream` to whoever asks for the next; what it was given to do may go on."""
        if (known := self._streams.pop(stream.cuda_stream, None)) is not None:
            _IDLE_STREAMS[self.gpu.index].append(known)

    def _make_stream(self) -> Any:
        with self.active():
            stream = self._cuda.Stream(_NON_BLOCKING)
        keep_forever(stream)
        return stream

    def knows_stream(self, handle: int) -> bool:
        return handle in self._streams

    def pycuda_stream(self, handle: int) -> Any:
        return self._streams[handle]


class CubinModule:
    """One cubin, loaded when first needed by either library."""

    def __init__(self, context: DeviceContext, cubin: Path) -> None:
        self.path = cubin
        self._context = context
        self._plain: Any = None
        self._attributed: Any = None
        self._functions: dict[tuple[str, str], Any] = {}

    def plain_function(self, name: str) -> Any:
        """The pycuda Function; call with the context active."""
        key = ('pycuda', name)
        if key not in self._functions:
            import pycuda.driver as cuda

            if self._plain is None:
                self._plain = cuda.module_from_buffer(self.path.read_bytes())
            function = self._plain.get_function(name)
            function.set_attribute(cuda.function_attribute.PREFERRED_SHARED_MEMORY_CARVEOUT, ALL_SHARED)
            self._functions[key] = function
        return self._functions[key]

    def attributed_function(self, name: str) -> Any:
        """The CUfunction of cuda-bindings."""
        key = ('bindings', name)
        if key not in self._functions:
            from cuda.bindings import driver

            if self._attributed is None:
                torch.empty(1, device=self._context.gpu.device)
                self._attributed = check(driver.cuModuleLoadData(self.path.read_bytes()), str(self.path))
            function = check(driver.cuModuleGetFunction(self._attributed, name.encode()), name)
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
            check(driver.cuFuncSetAttribute(function, attribute, ALL_SHARED), name)
            self._functions[key] = function
        return self._functions[key]

    def allow_shared(self, function: Any, size: int) -> None:
        """Let a pycuda Function use more dynamic shared memory than the default 48 KiB."""
        import pycuda.driver as cuda

        function.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, size)


def check(result: tuple[Any, ...], where: str) -> Any:
    """Unwrap what a cuda-bindings call returned; raises BackendError with the driver's name of the error."""
    status, *values = result
    if int(status) != 0:
        raise BackendError(
            f'the CUDA driver answered {status.name}',
            where,
            'see the kernel log (dmesg) and restart the process',
        )
    return values[0] if values else None


def keep_forever(handle: object) -> None:
    """Never destroy the object, not even when the interpreter ends.

    pycuda would destroy the context that it stands for, while torch still frees graphs and pinned memory; and
    what lies in a lost context cannot be freed: torch aborts the process that tries.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


def _import_pycuda() -> Any:
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise BackendError(
            f'pycuda cannot be imported: {error}', 'CUDA engine', 'pip install pycuda'
        ) from error
    return cuda
