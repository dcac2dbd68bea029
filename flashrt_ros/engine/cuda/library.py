"""All kernels of one GPU, compiled and loaded on first use and shared by every engine on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flashrt_ros.engine.cuda.compiler import compile_kernels
from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.cuda.driver import CubinModule, DeviceContext
from flashrt_ros.engine.cuda.launcher import Kernel

Build = tuple[str, tuple[tuple[str, int], ...]]
"""A kernel file and the constants it is compiled with."""


class KernelLibrary:
    """Kernels by file, name and constants: `library.kernel('norm', 'rms_norm', WIDTH=2048)`."""

    def __init__(self, gpu: Gpu, cache: Path | None = None) -> None:
        self.gpu = gpu
        self.context = DeviceContext(gpu)
        self._cache = cache
        self._modules: dict[Build, CubinModule] = {}
        self._kernels: dict[tuple[Build, str], Kernel] = {}

    def kernel(self, file: str, name: str, **constants: int) -> Kernel:
        """The function `name` of kernels/<file>.cu. Raises BackendError when it does not compile or load."""
        build = _build(file, constants)
        if (build, name) not in self._kernels:
            if build not in self._modules:
                cubin = compile_kernels(file, self.gpu.architecture, constants, self._cache)
                self._modules[build] = CubinModule(self.context, cubin)
            self._kernels[build, name] = Kernel(self.context, self._modules[build], name)
        return self._kernels[build, name]

    def compile(self, builds: Iterable[tuple[str, Mapping[str, int]]]) -> None:
        """Fill the cache for several files at once; nvcc runs in parallel."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            unique = {_build(file, constants): (file, constants) for file, constants in builds}.values()
            list(pool.map(lambda b: compile_kernels(b[0], self.gpu.architecture, b[1], self._cache), unique))


def _build(file: str, constants: Mapping[str, int]) -> Build:
    return file, tuple(sorted(constants.items()))
