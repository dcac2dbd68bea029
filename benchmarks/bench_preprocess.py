"""From mapped frames to patches: the preprocessing kernels.

    python -m benchmarks.bench_preprocess [--rounds 200]

gpu: events around copies and graph on a stream that is already busy, so that launches do not count. call:
from the frames to a finished graph, as the policy waits for it, host work included. Medians and 99th
percentiles.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.frame_inputs import FrameInputs
from flashrt_ros.frame import Frame
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.pictures import ENCODINGS, CameraImage, Framing

CASES = (
    ('rgb8', 640, 480, 0),
    ('rgb8', 640, 480, 90),
    ('yuyv', 640, 480, 0),
    ('nv12', 640, 480, 0),
    ('bayer_rggb8', 640, 480, 0),
    ('rgb16', 640, 480, 0),
    ('rgb8', 1280, 720, 0),
    ('rgb8', 3840, 2160, 0),
)
BUSY_CYCLES = 400_000


class Bench:
    """Two views of one kind, each in two slots that take turns, as those of a ring do."""

    def __init__(self, library: KernelLibrary, convention: str, rounds: int) -> None:
        self.library, self.rounds = library, rounds
        self.stream = library.context.new_stream()
        with torch.cuda.stream(self.stream):
            self.inputs = FrameInputs(library, NANO_PI05.vision, convention, 2)
            rows = 2 * NANO_PI05.vision.tokens
            self.out = torch.zeros(rows, self.inputs.sizes.columns, dtype=torch.bfloat16, device='cuda')
            self.inputs.launch(0, 2, self.out)
        self.stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.inputs.launch(0, 2, self.out)

    def run(self, name: str, width: int, height: int, rotate: int) -> tuple[np.ndarray, np.ndarray]:
        """Microseconds on the GPU and of the whole call, [rounds] each."""
        images = [CameraImage(_mapped(name, width, height), Framing(rotate)) for _ in range(4)]
        pairs = [{'a': images[0], 'b': images[1]}, {'a': images[2], 'b': images[3]}]
        gpu, call = [], []
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            for index in range(self.rounds + 10):
                torch.cuda._sleep(BUSY_CYCLES)
                before.record()
                self._once(pairs[index % 2])
                after.record()
                self.stream.synchronize()
                gpu.append(before.elapsed_time(after) * 1e3)
                begin = time.perf_counter()
                self._once(pairs[index % 2])
                self.stream.synchronize()
                call.append((time.perf_counter() - begin) * 1e6)
        return np.array(gpu[10:]), np.array(call[10:])

    def _once(self, images: dict[str, CameraImage]) -> None:
        self.inputs.write(images)
        self.graph.replay()


def _mapped(name: str, width: int, height: int) -> Frame:
    encoding = ENCODINGS[name]
    step = encoding.row_bytes(width)
    memory = torch.randint(0, 256, (step * encoding.rows(height),), dtype=torch.uint8).pin_memory()
    frame = Frame(memory.numpy(), name, width, height, step)
    return replace(frame, device_address=memory.data_ptr())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=200)
    rounds = parser.parse_args().rounds
    library = KernelLibrary(find_gpu())
    print(f'{library.gpu.name}, 2 views, {rounds} rounds; microseconds, median / p99', flush=True)
    for convention, cases in (('pil', CASES), ('torch', CASES[:1])):
        bench = Bench(library, convention, rounds)
        for name, width, height, rotate in cases:
            times = bench.run(name, width, height, rotate)
            gpu, call = (f'{np.median(x):7.1f} / {np.percentile(x, 99):7.1f}' for x in times)
            text = f'{convention:5} {name:11} {width:4} x {height:4} rotate {rotate:3}'
            print(f'{text}  gpu {gpu}  call {call}', flush=True)


if __name__ == '__main__':
    main()
