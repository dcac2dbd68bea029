"""Which decoder the JPEGs of a robot's cameras get: `ingest.decode`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.errors import BackendError
from flashrt_ros.ingest.compressed import CPU_DECODER, JpegDecoder

_ON_CPU = f'{CPU_DECODER} on the CPU'


@dataclass(frozen=True)
class Decoding:
    """chosen: what decodes, and why. on_gpu: view -> its decoder there, for the views that have one.
    close: gives back what these hold, once nobody decodes any more."""

    chosen: str
    on_gpu: Mapping[str, JpegDecoder] = field(default_factory=dict)
    close: Callable[[], object] = lambda: None

    @property
    def text(self) -> str:
        """For people: also what has gone wrong since."""
        troubles = {decoder.trouble for decoder in self.on_gpu.values()} - {''}
        return f'{_ON_CPU}, because the GPU failed ({", ".join(troubles)})' if troubles else self.chosen


def decoding_of(config: RobotConfig) -> Decoding:
    """Raises BackendError where `ingest.decode` asks for the GPU and it cannot be had."""
    views = [view for view, camera in config.cameras.items() if camera.transport == 'compressed']
    if not views:
        return Decoding('no camera is compressed')
    return _on_gpu(views) if config.ingest.decode == 'gpu' else Decoding(_ON_CPU)


def _on_gpu(views: Sequence[str]) -> Decoding:
    import torch

    if not torch.cuda.is_available():
        raise BackendError(
            f'torch {torch.__version__} finds no usable NVIDIA GPU', 'ingest.decode', "choose 'cpu'"
        )
    from flashrt_ros.ingest.gpu_jpeg import GpuJpeg
    from flashrt_ros.ingest.nvjpeg import NvJpeg

    library = NvJpeg()
    chosen = f'nvJPEG {library.version} on the GPU, which sees less damage than the CPU does'
    return Decoding(chosen, {view: GpuJpeg(library) for view in views}, library.close)
