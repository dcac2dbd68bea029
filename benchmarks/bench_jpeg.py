"""From a JPEG in memory to RGB in a pinned slot: libjpeg-turbo on the CPU beside nvJPEG on the GPU.

    python -m benchmarks.bench_jpeg [--rounds 200] [--picture photograph.jpg] [--damage 100]

idle: nothing else runs. busy: another thread replays a graph of matrix products without a pause, as a policy
whose inferences overlap with decoding would. Microseconds of a call, 50th, 90th and 99th percentile; behind
them how many replays a second the other thread had meanwhile, as a share of what it has alone. Pictures are
4:2:0, of a photograph with the noise of a camera.

--damage: how many of so many damaged files each decoder shows, by what they lost.
"""

from __future__ import annotations

import argparse
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks.jpeg_damage import print_damage
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.frame import Frame
from flashrt_ros.ingest.compressed import CPU_DECODER, decompress
from flashrt_ros.ingest.gpu_jpeg import GpuJpeg
from flashrt_ros.ingest.nvjpeg import NvJpeg
from flashrt_ros.ingest.ring import FrameRing, pinned_memory

CASES = ((640, 480, 80), (640, 480, 95), (1280, 720, 80), (1280, 720, 95), (1920, 1080, 80), (3840, 2160, 80))
"""Width, height and quality."""

NOISE, COLOUR_NOISE = 3.0, 1.5
"""Of 255: what a small sensor adds to grey and to single channels."""

Decode = Callable[[Frame], object]


class Load:
    """Replays of a graph that fills the GPU, on a stream and a thread of their own."""

    def __init__(self, size: int = 4096, products: int = 20) -> None:
        self.stream, self.replays, self._end = torch.cuda.Stream(), 0, threading.Event()
        one, other = (torch.randn(size, size, dtype=torch.bfloat16, device='cuda') for _ in range(2))
        self._kept = one, other, torch.empty_like(one)
        torch.matmul(one, other, out=self._kept[2])
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self.stream):
            for _ in range(products):
                torch.matmul(one, other, out=self._kept[2])

    @contextmanager
    def running(self) -> Iterator[None]:
        self._end.clear()
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def alone(self, seconds: float = 0.5) -> float:
        """Replays a second while nothing else runs."""
        with self.running():
            time.sleep(0.05)
            before, begin = self.replays, time.perf_counter()
            time.sleep(seconds)
            return (self.replays - before) / (time.perf_counter() - begin)

    def _run(self) -> None:
        with torch.cuda.stream(self.stream):
            while not self._end.is_set():
                self._graph.replay()
                self.stream.synchronize()
                self.replays += 1


def photograph(path: Path | None) -> Image.Image:
    """A picture file, one that comes with matplotlib, or noise that has a picture's frequencies."""
    if path is None:
        try:
            import matplotlib

            path = Path(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
        except ImportError:
            print('no --picture and no matplotlib: made up, with more detail than a photograph')
    if path is not None:
        return Image.open(path).convert('RGB')
    rows, columns = np.fft.fftfreq(480)[:, None], np.fft.fftfreq(640)[None, :]
    phase = np.exp(2j * np.pi * np.random.default_rng(0).random((480, 640)))
    waves = np.fft.ifft2(phase / np.maximum(np.hypot(rows, columns), 1 / 640)).real
    grey = np.clip(128 + 50 * waves / waves.std(), 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, grey // 2 + 40, 255 - grey], axis=-1))


def camera_jpeg(picture: Image.Image, width: int, height: int, quality: int) -> np.ndarray:
    """uint8 [N]: the middle of the picture at this size, with a camera's noise."""
    part = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, NOISE, (height, width, 1)) + rng.normal(0, COLOUR_NOISE, (height, width, 3))
    noisy, file = np.clip(np.asarray(part) + noise, 0, 255).astype(np.uint8), io.BytesIO()
    Image.fromarray(noisy).save(file, 'JPEG', quality=quality)
    return np.frombuffer(file.getvalue(), np.uint8)


def _checked(gpu: GpuJpeg, ring: FrameRing) -> Decode:
    """Decodes on the GPU or fails: what it left to the CPU would be the CPU's time."""

    def must(data: np.ndarray, pixels: Callable[[int, int], np.ndarray]) -> bool:
        if not gpu(data, pixels):
            raise RuntimeError(f'it refuses the file ({gpu.trouble or "no trouble"})')
        return True

    def decode(frame: Frame) -> object:
        return decompress(frame, 'view', ring, must)  # type: ignore[arg-type]

    return decode


def times(decode: Decode, frame: Frame, rounds: int) -> np.ndarray:
    """Microseconds of a call, [rounds]."""
    taken = []
    for _ in range(rounds + 5):
        begin = time.perf_counter()
        decode(frame)
        taken.append((time.perf_counter() - begin) * 1e6)
    return np.array(taken[5:])


def run(name: str, decode: Decode, frame: Frame, rounds: int, load: Load, alone: float) -> None:
    try:
        idle = times(decode, frame, rounds)
        with load.running():
            time.sleep(0.02)
            before, begin = load.replays, time.perf_counter()
            busy = times(decode, frame, rounds)
            rate = (load.replays - before) / (time.perf_counter() - begin)
    except Exception as error:
        print(f'    {name:18} {error}', flush=True)
        return
    idle_text, busy_text = (
        ' / '.join(f'{value:7.0f}' for value in np.percentile(part, (50, 90, 99))) for part in (idle, busy)
    )
    print(f'    {name:18} idle {idle_text}   busy {busy_text}   load {rate / alone:5.1%}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=200)
    parser.add_argument('--picture', type=Path)
    parser.add_argument('--damage', type=int, default=0, metavar='FILES')
    arguments = parser.parse_args()
    picture = photograph(arguments.picture)
    print(f'{find_gpu().name}, {arguments.rounds} rounds; microseconds, 50 / 90 / 99 %')
    if arguments.damage:
        print_damage(camera_jpeg(picture, 640, 480, 80).tobytes(), arguments.damage)
    load = Load()
    alone = load.alone()
    print(f'the load alone: {alone:.0f} replays a second')
    gpu = GpuJpeg(NvJpeg())
    made: dict[str, Callable[[FrameRing], Decode]] = {
        CPU_DECODER: lambda ring: lambda frame: decompress(frame, 'view', ring),
        'nvJPEG': lambda ring: _checked(gpu, ring),
    }
    for width, height, quality in CASES:
        data = camera_jpeg(picture, width, height, quality)
        print(f'{width} x {height}, quality {quality}, {data.size / 1000:.0f} kB', flush=True)
        rounds = max(10, arguments.rounds * 640 * 480 // (width * height))
        for name, make in made.items():
            ring = FrameRing(pinned_memory, mapped=True)
            run(name, make(ring), Frame(data, 'jpeg', 0, 0, 0), rounds, load, alone)


if __name__ == '__main__':
    main()
