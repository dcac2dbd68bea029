"""What decoders say of damaged JPEGs: how many they show, and which of those libjpeg-turbo refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flashrt_ros.errors import ObservationError
from flashrt_ros.frame import Frame
from flashrt_ros.ingest.compressed import decompress
from flashrt_ros.ingest.gpu_jpeg import GpuJpeg
from flashrt_ros.ingest.nvjpeg import NvJpeg

Damage = Callable[[bytes, int, np.random.Generator], bytes]


def _flipped(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


DAMAGE: dict[str, Damage] = {
    'cut, no end marker': lambda data, at, rng: data[:at],
    'cut, end marker': lambda data, at, rng: data[:at] + data[-2:],
    '1000 bytes gone': lambda data, at, rng: data[:at] + data[at + 1000 :],
    '1000 bytes zero': lambda data, at, rng: data[:at] + bytes(1000) + data[at + 1000 :],
    '1000 bytes random': lambda data, at, rng: data[:at] + rng.bytes(1000) + data[at + 1000 :],
    'one bit': _flipped,
    '2 bytes left over': lambda data, at, rng: data[:-2] + bytes(2) + data[-2:],
}


def print_damage(whole: bytes, count: int) -> None:
    """whole: a file that nothing is wrong with. count: files a kind of damage."""
    files = {name: _damaged(whole, damage, count) for name, damage in DAMAGE.items()}
    on_cpu = {name: [_shown_by_cpu(data) for data in some] for name, some in files.items()}
    print(
        f"of {count} damaged files each: shown, of those refused by the CPU, of those not the CPU's picture"
    )
    print(f'  {"":22}' + ''.join(f'{name:>20}' for name in DAMAGE))
    shown = ''.join(f'{sum(one is not None for one in on_cpu[name]):>20}' for name in DAMAGE)
    print(f'  {"CPU":22}{shown}')
    gpu = GpuJpeg(NvJpeg())
    cells = [_cell(gpu, files[kind], on_cpu[kind]) for kind in DAMAGE]
    print(f'  {"nvJPEG":22}{"".join(cells)}', flush=True)


def _damaged(whole: bytes, damage: Damage, count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [damage(whole, int(rng.integers(1000, len(whole) - 1500)), rng) for _ in range(count)]


def _frame(data: bytes) -> Frame:
    return Frame(np.frombuffer(data, np.uint8), 'jpeg', 0, 0, 0)


def _shown_by_cpu(data: bytes) -> np.ndarray | None:
    try:
        return decompress(_frame(data), 'view').data
    except ObservationError:
        return None


def _cell(gpu: GpuJpeg, files: list[bytes], on_cpu: list[np.ndarray | None]) -> str:
    shown = wrongly = unlike = troubles = 0
    for data, other in zip(files, on_cpu, strict=True):
        picture = _shown(gpu, data)
        if gpu.trouble:
            gpu.trouble, troubles = '', troubles + 1
        if picture is None:
            continue
        shown, wrongly = shown + 1, wrongly + (other is None)
        if other is not None:
            unlike += bool(np.abs(picture.astype(int) - other).mean() > 2.0)
    text = f'{shown} {wrongly} {unlike}{f" !{troubles}" if troubles else ""}'
    return f'{text:>20}'


def _shown(gpu: GpuJpeg, data: bytes) -> np.ndarray | None:
    """The pixels, where the GPU itself shows the file."""
    kept: list[np.ndarray] = []

    def pixels(height: int, width: int) -> np.ndarray:
        if height * width > 1 << 20:
            raise ObservationError('too large', 'view', 'none')
        kept.append(np.zeros((height, width, 3), np.uint8))
        return kept[-1]

    try:
        return kept[-1].reshape(-1) if gpu(np.frombuffer(data, np.uint8), pixels) else None
    except ObservationError:
        return None
