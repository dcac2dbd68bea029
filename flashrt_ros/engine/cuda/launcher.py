"""Launching a kernel on torch's current stream with torch tensors.

Arguments become C values by their Python type: a tensor its device pointer, None a null pointer, bool and int
`int`, float `float`, a ctypes value itself (a tensor map is passed by value this way).
Plain launches go through pycuda. Launch attributes (dependent launch, clusters) and streams that pycuda did
not create go through cuda-bindings, on the same context and the same cubin.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from flashrt_ros.engine.cuda.driver import CubinModule, DeviceContext, check

Argument = torch.Tensor | None | bool | int | float | ctypes.Structure | ctypes.Array

Dimensions = int | tuple[int, ...]


class Kernel:
    """One `__global__` function. Call it with grid, block and its arguments; it returns at once.

    shared: bytes of dynamic shared memory. cluster: CTAs per cluster.
    cooperative: all CTAs have to be resident at once; the launch fails when they cannot be.
    dependent: the kernel executes griddepcontrol.wait before it touches what its predecessor writes, so it
    may start while the predecessor drains (programmatic dependent launch).
    """

    def __init__(self, context: DeviceContext, module: CubinModule, name: str) -> None:
        self.name = name
        self._context, self._module = context, module
        self._prepared: tuple[str, int] | None = None
        self._shared = 0

    def __call__(
        self,
        grid: Dimensions,
        block: Dimensions,
        *arguments: Argument,
        shared: int = 0,
        cluster: Dimensions | None = None,
        cooperative: bool = False,
        dependent: bool = False,
    ) -> None:
        handle = torch.cuda.current_stream(self._context.gpu.device).cuda_stream
        grid3, block3 = _three(grid), _three(block)
        attributes = _attributes(cluster, cooperative, dependent)
        attributed = bool(attributes) or any(isinstance(a, _BY_VALUE) for a in arguments)
        if attributed or not self._context.knows_stream(handle):
            self._launch_attributed(grid3, block3, arguments, shared, attributes, handle)
        else:
            self._launch_plain(grid3, block3, arguments, shared, handle)

    def most_clusters(self, cluster: Dimensions, block: int, shared: int) -> int:
        """How many clusters of that many blocks can be resident at once."""
        from cuda.bindings import driver

        function = self._attributed_function(shared)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = _three(cluster)
        config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
        config.sharedMemBytes = shared
        config.attrs = _attributes(cluster, cooperative=False, dependent=False)
        config.numAttrs = len(config.attrs)
        return int(check(driver.cuOccupancyMaxActiveClusters(function, config), self.name))

    def _launch_plain(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        shared: int,
        handle: int,
    ) -> None:
        signature = ''.join(map(_format, arguments))
        with self._context.active():
            function = self._module.plain_function(self.name)
            if self._prepared != (signature, shared):
                function.prepare(signature)
                self._module.allow_shared(function, shared)
                self._prepared = (signature, shared)
            values = [_pointer(a) if a is None or isinstance(a, torch.Tensor) else a for a in arguments]
            stream = self._context.pycuda_stream(handle)
            function.prepared_async_call(grid, block, stream, *values, shared_size=shared)

    def _launch_attributed(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        shared: int,
        attributes: list[Any],
        handle: int,
    ) -> None:
        from cuda.bindings import driver

        function = self._attributed_function(shared)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes = shared
        config.hStream = handle
        config.attrs = attributes
        config.numAttrs = len(config.attrs)
        values = [_c_value(a) for a in arguments]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(v) for v in values))
        check(driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0), self.name)

    def _attributed_function(self, shared: int) -> Any:
        """The CUfunction, allowed to use `shared` bytes of dynamic shared memory."""
        from cuda.bindings import driver

        function = self._module.attributed_function(self.name)
        if shared > self._shared:
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(driver.cuFuncSetAttribute(function, limit, shared), self.name)
            self._shared = shared
        return function


_BY_VALUE = (ctypes.Structure, ctypes.Array)


def _attributes(cluster: Dimensions | None, cooperative: bool, dependent: bool) -> list[Any]:
    attributes: list[Any] = []
    if cluster is None and not cooperative and not dependent:
        return attributes
    from cuda.bindings import driver

    if cluster is not None:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        x, y, z = _three(cluster)
        attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = x, y, z
        attributes.append(attribute)
    if cooperative:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        attribute.value.cooperative = 1
        attributes.append(attribute)
    if dependent:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        attributes.append(attribute)
    return attributes


def _three(dimensions: Dimensions) -> tuple[int, int, int]:
    given = (dimensions,) if isinstance(dimensions, int) else tuple(dimensions)
    x, y, z = (*given, 1, 1)[:3]
    return x, y, z


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _format(argument: Argument) -> str:
    if argument is None or isinstance(argument, torch.Tensor):
        return 'P'
    return 'f' if isinstance(argument, float) else 'i'


def _c_value(argument: Any) -> Any:
    if argument is None or isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(_pointer(argument))
    if isinstance(argument, _BY_VALUE):
        return argument
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)
