"""What it would gain to see a camera's frame when it arrives, and what that costs an inference in progress.

    python -m benchmarks.bench_overlap [--precision fp8] [--rounds 150]

pi0.5 at full size, random weights, 2 views of 640x480 rgb8 in mapped memory, 50 prompt tokens. Milliseconds
from the call to the actions, host work included; median / p99. Once with all streams alike, once with the
inference before them.

  at the tick          frames, vision, prefill and denoise in one graph: what the engine does
  seen before          features of both views were there: prefill and denoise alone
  second view last     the first view was seen before, the second arrives with the tick (trigger: frame)
  uploaded before      frames lie in device memory at the tick
  + vision beside      the same as the first, while another stream sees two frames once a call
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.policies import PolicyFactory, observations
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.graph import StagedGraph
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.engine import Engine
from flashrt_ros.engine.frame_inputs import FrameInputs
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.towers.vision import VisionTower
from flashrt_ros.frame import Frame
from flashrt_ros.pictures import CameraImage

TOKENS = 50
WIDTH, HEIGHT = 640, 480


class SeenEarly:
    """Single views on a stream of their own, each into features that wait for the tick."""

    def __init__(self, engine: Engine, packed: dict[str, torch.Tensor], scales: dict[str, float]) -> None:
        library, spec = engine.library, engine.spec.vision
        self.engine, self.stream = engine, library.context.new_stream()
        with torch.cuda.stream(self.stream):
            self.frames = FrameInputs(library, spec, 'pil', 2)
            self.tower = VisionTower(Operators(library), spec, packed, scales, 1)
            self.features = torch.zeros_like(engine.vision.output(2))
        pool = torch.cuda.graph_pool_handle()

        def see(slot: int) -> Callable[[], None]:
            def work() -> None:
                self.frames.launch(slot, 1, self.tower.patch_rows(1))
                self.tower.see(1)
                rows = slice(slot * spec.tokens, (slot + 1) * spec.tokens)
                self.features[rows].copy_(self.tower.output(1))

            return work

        def gather() -> None:
            engine.vision.output(2).copy_(self.features)

        self.graphs = [StagedGraph([('see', see(i))], self.stream, pool, timed=False) for i in range(2)]
        rest = engine.acting(2, engine.prompt_rows(TOKENS))
        self.rest = StagedGraph([('gather', gather), *rest], engine.stream, pool, timed=False)

    def see(self, slot: int, image: CameraImage) -> None:
        with torch.cuda.stream(self.stream):
            self.frames.write_view(slot, f'view {slot}', image)
        self.graphs[slot].launch()

    def finish(self) -> None:
        """The rest of the inference, once both views have been seen."""
        self.engine.stream.wait_stream(self.stream)
        self.rest.launch()


def camera_image(seed: int, on_device: bool = False) -> CameraImage:
    pixels = torch.randint(
        0, 256, (HEIGHT * WIDTH * 3,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    memory = pixels.cuda() if on_device else pixels.pin_memory()
    frame = Frame(pixels.numpy() if on_device else memory.numpy(), 'rgb8', WIDTH, HEIGHT, 3 * WIDTH)
    frame = replace(frame, device_address=memory.data_ptr())
    _ALIVE.append(memory)
    return CameraImage(frame)


_ALIVE: list[torch.Tensor] = []


def timed(
    call: Callable[[], None], engine: Engine, rounds: int, before: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Milliseconds of `call` until the actions are there; `before` is not counted."""
    spent = []
    for _ in range(rounds + 10):
        before()
        begin = time.perf_counter()
        call()
        engine.read()
        spent.append((time.perf_counter() - begin) * 1e3)
        torch.cuda.synchronize()
        time.sleep(0.001)
    return np.array(spent[10:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--precision', default='fp8', choices=('bf16', 'fp8'))
    parser.add_argument('--rounds', type=int, default=150)
    arguments = parser.parse_args()
    library = KernelLibrary(find_gpu())
    factory = PolicyFactory(library, 'pi05')
    for priority in (False, True):
        print(f'{library.gpu.name}, pi05 {arguments.precision}, inference first: {priority}', flush=True)
        measure(factory, arguments.precision, priority, arguments.rounds)


def measure(factory: PolicyFactory, precision: str, priority: bool, rounds: int) -> None:
    library = factory.library
    scales = factory.scales() if precision == 'fp8' else {}
    packed = factory.packed(precision, 2)
    ordinary = library.context.new_stream
    if priority:
        library.context.new_stream = lambda: torch.cuda.Stream(priority=-1)  # type: ignore[method-assign]
    engine = Engine(library, factory.spec, packed, 2, scales, 'pil')
    engine.capture(timed=False)
    library.context.new_stream = ordinary  # type: ignore[method-assign]
    early = SeenEarly(engine, packed, scales)
    _, *rest = observations(factory.spec, 2, TOKENS, 1)[0]
    images = [camera_image(0), camera_image(1)]
    device = [camera_image(0, True), camera_image(1, True)]

    def at_the_tick(pictures: list[CameraImage] = images) -> None:
        engine.write(dict(zip('ab', pictures, strict=True)), *rest)
        engine.replay()

    def seen_before() -> None:
        engine.write(dict(zip('ab', images, strict=True)), *rest)  # a few microseconds that it would not need
        early.finish()

    def both_seen() -> None:
        early.see(0, images[0])
        early.see(1, images[1])
        early.stream.synchronize()

    def second_last() -> None:
        early.see(1, images[1])
        seen_before()

    def first_seen() -> None:
        early.see(0, images[0])
        early.stream.synchronize()

    def beside() -> None:
        at_the_tick()
        early.see(0, images[0])
        early.see(1, images[1])

    def alone() -> None:
        early.see(0, images[0])
        early.stream.synchronize()

    for name, times in (
        ('at the tick', lambda: timed(at_the_tick, engine, rounds)),
        ('seen before', lambda: timed(seen_before, engine, rounds, both_seen)),
        ('second view last', lambda: timed(second_last, engine, rounds, first_seen)),
        ('uploaded before', lambda: timed(lambda: at_the_tick(device), engine, rounds)),
        ('+ vision beside', lambda: timed(beside, engine, rounds)),
        ('one view alone', lambda: timed(alone, engine, rounds)),
    ):
        found = times()
        print(f'{name:18} {np.median(found):7.3f} / {np.percentile(found, 99):7.3f}', flush=True)
    at_the_tick()
    expected = engine.read().clone()
    both_seen()
    seen_before()
    difference = float((engine.read() - expected).abs().max())
    print('largest difference of an action, seen before or at the tick:', difference, flush=True)


if __name__ == '__main__':
    main()
