"""The image path alone, from two cameras' stamp to the network's input, ours and as it is usually written.

usual: rclpy.spin, typed callbacks, numpy view of the pixels, cv2.resize (or Pillow without OpenCV) with
padding, upload, float, scale to [-1, 1], channels first. ours: the sources of the policy node, and what the
backend makes of the frames; on the CPU that is antialiased, which cv2.resize is not. Cameras are a process of
their own, the same for both; their transport is in the figures.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image

from benchmarks.e2e.camera import SENSOR, topic_of
from benchmarks.e2e.setting import VIEWS
from benchmarks.e2e.stages import percentiles
from demo.children import Family
from flashrt_ros.frame import Frame
from flashrt_ros.ingest.ring import FrameRing, pinned_memory, plain_memory
from flashrt_ros.ingest.stream import stamp_ns
from flashrt_ros.models.image import resize_with_pad
from flashrt_ros.models.spec import PI05
from flashrt_ros.nodes.frame_sources import DirectSource
from flashrt_ros.pictures import CameraImage

RATE_HZ, SECONDS = 60.0, 4.0
WARM_UP = 30
"""Frames that do not count."""

SQUARE = 224

Done = Callable[[int], None]
"""Called with the stamp of the pictures [ns] that are the network's input now."""


def compare(size: str, device: str) -> dict[str, Any]:
    """Milliseconds of each way, processor time that it takes, and how many times faster ours is."""
    usual, usual_cpu = _measured(_usual, size, device)
    ours, ours_cpu = _measured(_ours, size, device)
    return {
        'size': size,
        'device': device,
        'resize': _resize.__name__,
        'usual_ms': percentiles(usual),
        'ours_ms': percentiles(ours),
        'usual_cpu_ms': usual_cpu,
        'ours_cpu_ms': ours_cpu,
        'times_faster': float(np.median(usual) / np.median(ours)),
    }


def _measured(
    start: Callable[[Node, str, Done], Callable[[], None]], size: str, device: str
) -> tuple[np.ndarray, float]:
    """Milliseconds of each pair of pictures, and of processor for a pair (all threads of this process)."""
    ready_ns: dict[int, int] = {}

    def done(stamp: int) -> None:
        ready_ns[stamp] = time.time_ns()

    rclpy.init()
    node, executor = rclpy.create_node('image_path'), SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin)
    stop = start(node, device, done)
    spinning.start()
    began = time.process_time()
    try:
        sent = _run_cameras(size)
    finally:
        executor.shutdown()
        spinning.join()
        stop()
        node.destroy_node()
        rclpy.try_shutdown()
    spent = time.process_time() - began
    latencies = [(ready - stamp) * 1e-6 for stamp, ready in sorted(ready_ns.items())][WARM_UP:]
    if len(latencies) < (sent - WARM_UP) / 2:
        raise RuntimeError(f'only {len(ready_ns)} of {sent} pairs of frames came')
    return np.array(latencies), spent / len(ready_ns) * 1e3


def _run_cameras(size: str) -> int:
    """Pictures that each camera has sent."""
    with tempfile.TemporaryDirectory() as name:
        family, log = Family(Path(name)), Path(name) / 'cameras.log'
        arguments = ['--views', *VIEWS, '--size', size, '--rate', str(RATE_HZ), '--seconds', str(SECONDS)]
        camera = family.start('cameras', 'benchmarks.e2e.camera', arguments)
        try:
            camera.process.wait(60.0)
        finally:
            family.end()
        return int(json.loads(log.read_text().strip().splitlines()[-1])['sent'])


def _usual(node: Node, device: str, done: Done) -> Callable[[], None]:
    ready: dict[str, int] = {}
    inputs = torch.zeros(len(VIEWS), 3, SQUARE, SQUARE, device=device)

    def keep(index: int, view: str, message: Image) -> None:
        pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        tensor = torch.from_numpy(_letterbox(pixels)).to(device)
        inputs[index] = (tensor.float() / 255 * 2 - 1).permute(2, 0, 1)
        if device == 'cuda':
            torch.cuda.synchronize()
        ready[view] = stamp_ns(message.header.stamp)
        if len(set(ready.values())) == 1 and len(ready) == len(VIEWS):
            done(ready[view])

    for index, view in enumerate(VIEWS):
        node.create_subscription(Image, topic_of(view), lambda m, i=index, v=view: keep(i, v, m), SENSOR)
    return lambda: None


def _letterbox(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    ratio = SQUARE / max(height, width)
    fitted = _resize(pixels, round(width * ratio), round(height * ratio))
    square = np.zeros((SQUARE, SQUARE, 3), np.uint8)
    top, left = (SQUARE - fitted.shape[0]) // 2, (SQUARE - fitted.shape[1]) // 2
    square[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return square


class _Pairs:
    """Frames of all views with the same stamp, for one thread that waits for them."""

    def __init__(self) -> None:
        self._latest: dict[str, Frame] = {}
        self._lock, self._complete = threading.Lock(), threading.Event()
        self.ended = False

    def sink(self, view: str) -> Any:
        class Sink:
            def keep(sink, frame: Frame) -> None:
                self._keep(view, frame)

            def drop(sink, reason: str) -> None:
                raise RuntimeError(reason)

        return Sink()

    def wait(self) -> dict[str, Frame]:
        self._complete.wait()
        self._complete.clear()
        with self._lock:
            return {view: self._latest[view] for view in VIEWS} if not self.ended else {}

    def end(self) -> None:
        self.ended = True
        self._complete.set()

    def _keep(self, view: str, frame: Frame) -> None:
        with self._lock:
            self._latest[view] = frame
            stamps = {one.stamp_ns for one in self._latest.values()}
            complete = len(stamps) == 1 and len(self._latest) == len(VIEWS)
        if complete:
            self._complete.set()


def _ours(node: Node, device: str, done: Done) -> Callable[[], None]:
    mapped, pairs, prepare = device == 'cuda', _Pairs(), _preparation(device)

    def work() -> None:
        while frames := pairs.wait():
            prepare(frames)
            done(min(frame.stamp_ns for frame in frames.values()))

    rings = {view: FrameRing(pinned_memory if mapped else plain_memory, mapped) for view in VIEWS}
    stops = [DirectSource(node, topic_of(view), 'raw', rings[view]).start(pairs.sink(view)) for view in VIEWS]
    worker = threading.Thread(target=work)
    worker.start()

    def stop() -> None:
        for end in (*stops, pairs.end, worker.join):
            end()

    return stop


def _preparation(device: str) -> Callable[[dict[str, Frame]], None]:
    """The network's input as the backends make it: on a GPU one kernel, which reads the slots itself."""
    if device == 'cpu':

        def on_cpu(frames: dict[str, Frame]) -> None:
            for view, frame in frames.items():
                resize_with_pad(CameraImage(frame).array(view), SQUARE, 'pil')

        return on_cpu
    from flashrt_ros.engine.cuda.device import find_gpu
    from flashrt_ros.engine.cuda.library import KernelLibrary
    from flashrt_ros.engine.frame_inputs import FrameInputs

    vision = PI05.vision
    inputs = FrameInputs(KernelLibrary(find_gpu()), vision, 'pil', views=len(VIEWS))
    rows = len(VIEWS) * vision.tokens
    patches = torch.empty(rows, inputs.sizes.columns, dtype=torch.bfloat16, device='cuda')

    def prepare(frames: dict[str, Frame]) -> None:
        inputs.write({view: CameraImage(frame) for view, frame in frames.items()})
        inputs.launch(0, len(VIEWS), patches)
        torch.cuda.synchronize()

    return prepare


def _with_opencv(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


def _with_pillow(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Picture.fromarray(pixels).resize((width, height), Picture.Resampling.BILINEAR))


try:
    import cv2

    _resize = _with_opencv
except ImportError:
    from PIL import Image as Picture

    _resize = _with_pillow
