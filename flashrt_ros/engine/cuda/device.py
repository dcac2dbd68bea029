"""Which GPU the engine runs on, and whether it suffices. A refusal names what is there and what is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from flashrt_ros.errors import BackendError

OLDEST_CAPABILITY = (8, 0)
"""Ampere: the first GPUs with bf16 matrix instructions and asynchronous copies."""

FP8_CAPABILITY = (8, 9)
"""Ada: the first GPUs whose matrix units take E4M3."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. capability: (major, minor). memory: bytes. l2: bytes of second-level cache."""

    index: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    l2: int

    @property
    def architecture(self) -> str:
        """nvcc's name of the real architecture; 9.0 needs the 'a' for wgmma and setmaxnreg."""
        major, minor = self.capability
        return f'{major}{minor}' + ('a' if (major, minor) == (9, 0) else '')

    @property
    def device(self) -> torch.device:
        return torch.device('cuda', self.index)


def find_gpu(index: int = 0) -> Gpu:
    """The GPU with this index. Raises BackendError when there is none, or it is too old."""
    if not torch.cuda.is_available():
        raise BackendError(
            f'torch {torch.__version__} finds no usable NVIDIA GPU (built for CUDA: {torch.version.cuda})',
            'device cuda',
            "install an NVIDIA driver and a CUDA build of torch, or choose device 'cpu'",
        )
    if index >= torch.cuda.device_count():
        raise BackendError(
            f'there are {torch.cuda.device_count()} GPUs', f'cuda:{index}', 'choose a smaller index'
        )
    properties = torch.cuda.get_device_properties(index)
    gpu = Gpu(
        index=index,
        name=properties.name,
        capability=(properties.major, properties.minor),
        multiprocessors=properties.multi_processor_count,
        memory=properties.total_memory,
        l2=properties.L2_cache_size,
    )
    require_capability(gpu, OLDEST_CAPABILITY, 'the engine')
    return gpu


def require_capability(gpu: Gpu, least: tuple[int, int], purpose: str) -> None:
    """Refuse a GPU older than `least`, naming the purpose that needs it."""
    if gpu.capability < least:
        raise BackendError(
            f'{gpu.name} has compute capability {_dotted(gpu.capability)}, {purpose} needs {_dotted(least)}',
            f'cuda:{gpu.index}',
            "choose a newer GPU, precision 'bf16' where fp8 is missing, or device 'cpu'",
        )


def require_memory(gpu: Gpu, size: int, purpose: str) -> None:
    """Refuse before allocating when less than `size` bytes are free."""
    free, total = torch.cuda.mem_get_info(gpu.index)
    if free < size:
        raise BackendError(
            f'{purpose} needs {_gibibytes(size)} of GPU memory; '
            f'{gpu.name} has {_gibibytes(free)} free of {_gibibytes(total)}',
            f'cuda:{gpu.index}',
            "end other programs on this GPU, choose precision 'fp8', or a larger GPU",
        )


@contextmanager
def gpu_failures(where: str, lost: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Errors of torch's CUDA runtime leave as BackendError that names `where`.

    lost: called after an error on the device itself (illegal address, GPU gone from the bus): its context is
    lost with everything in it, and no call of this process reaches the GPU again.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f'the GPU memory does not suffice: {_first_line(error)}',
            where,
            "end other programs on this GPU, choose precision 'fp8', or a larger GPU",
        ) from error
    except RuntimeError as error:  # torch.AcceleratorError is one; older releases raise RuntimeError itself
        lost()
        raise BackendError(
            f'the GPU failed: {_first_line(error)}',
            where,
            'restart the process, and see the kernel log (dmesg)',
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition('\n')[0]


def _dotted(capability: tuple[int, int]) -> str:
    return f'{capability[0]}.{capability[1]}'


def _gibibytes(size: int) -> str:
    return f'{size / 2**30:.1f} GiB'
