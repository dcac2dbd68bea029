"""Which decoder the JPEGs of a robot's cameras get: `ingest.decode`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.errors import BackendError
from flashrt_ros.ingest.compressed import CPU_DECODER, JpegDecoder

AUTO_PIXELS: int | None = None
"""From how many pixels on `auto` lets the GPU decode (docs/cameras.md has the figures); None: never."""

BACKEND = 'hybrid'
"""Of nvJPEG (`nvjpeg.BACKENDS`)."""

_ON_CPU = f'{CPU_DECODER} on the CPU'


@dataclass(frozen=True)
class Decoding:
    """chosen: what decodes, and why. on_gpu: view -> its decoder there, for the views that have one."""

    chosen: str
    on_gpu: Mapping[str, JpegDecoder] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """For people: also what has gone wrong since."""
        troubles = {decoder.trouble for decoder in self.on_gpu.values()} - {''}
        return f'{_ON_CPU}, because the GPU failed ({", ".join(troubles)})' if troubles else self.chosen


def decoding_of(config: RobotConfig) -> Decoding:
    """Raises BackendError where `ingest.decode` asks for the GPU and it cannot be had."""
    wanted = config.ingest.decode
    views = [view for view, camera in config.cameras.items() if camera.transport == 'compressed']
    if not views:
        return Decoding('no camera is compressed')
    if wanted == 'cpu':
        return Decoding(f'{_ON_CPU} (ingest.decode)')
    if config.policy.device != 'cuda':
        return Decoding(f'{_ON_CPU} (policy.device is {config.policy.device})')
    if wanted == 'auto' and AUTO_PIXELS is None:
        return Decoding(f'{_ON_CPU} (ingest.decode is auto)')
    try:
        return _on_gpu(views, 0 if wanted == 'gpu' else AUTO_PIXELS or 0)
    except BackendError as error:
        if wanted == 'gpu':
            raise
        return Decoding(f'{_ON_CPU} ({error.what})')


def _on_gpu(views: Sequence[str], least_pixels: int) -> Decoding:
    import torch

    if not torch.cuda.is_available():
        raise BackendError(
            f'torch {torch.__version__} finds no usable NVIDIA GPU', 'ingest.decode', "choose 'auto' or 'cpu'"
        )
    from flashrt_ros.ingest.gpu_jpeg import GpuJpeg
    from flashrt_ros.ingest.nvjpeg import NvJpeg

    library = NvJpeg(BACKEND)
    chosen = f'nvJPEG {library.version} on the GPU'
    if least_pixels:
        chosen += f' from {least_pixels} pixels on, {_ON_CPU} below'
    return Decoding(chosen, {view: GpuJpeg(library, least_pixels) for view in views})
