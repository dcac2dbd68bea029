"""The image path alone, from two cameras' pictures to the network's input, ours and as it is usually written.

It begins when the middleware has received the later picture of a pair (its own stamp): what lies before, the
camera's writing and the middleware's copies, is the same for both, and is in the figures from the stamp on.

usual: rclpy.spin, typed callbacks, numpy view of the pixels, cv2.resize (or Pillow without OpenCV) with
padding, upload, float, scale to [-1, 1], channels first. ours: the sources of the policy node, its wait for
frames, and what the backend makes of them: on a GPU its graph, launched as in the node by the thread that
takes the last frame; on the CPU in a thread of its own, antialiased, which cv2.resize is not. Cameras are a
process of their own, the same for both.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image

from benchmarks.e2e.camera import SENSOR, topic_of
from benchmarks.e2e.reception import Receptions
from benchmarks.e2e.setting import VIEWS
from benchmarks.e2e.stages import percentiles
from demo.children import Family
from flashrt_ros.frame import Frame, FrameSink
from flashrt_ros.ingest.fresh import Fresh
from flashrt_ros.ingest.ring import FrameRing, pinned_memory, plain_memory
from flashrt_ros.ingest.stream import Stream, stamp_ns
from flashrt_ros.models.image import resize_with_pad
from flashrt_ros.models.spec import PI05
from flashrt_ros.nodes.frame_sources import DirectSource
from flashrt_ros.pictures import CameraImage
from flashrt_ros.scheduling import switch_quickly

RATE_HZ, SECONDS = 60.0, 4.0
WARM_UP = 30
"""Frames that do not count."""

SQUARE = 224

Done = Callable[[int, int], None]
"""Called with the stamp of the pictures that are the network's input now, and when the later one was received
[ns, system clock]."""


def compare(size: str, device: str) -> dict[str, Any]:
    """Milliseconds of each way, processor time that it takes, and how many times faster ours is."""
    ways = {'usual': _measured(_usual, size, device), 'ours': _measured(_ours, size, device)}
    found: dict[str, Any] = {'size': size, 'device': device, 'resize': _resize.__name__}
    for name, way in ways.items():
        found[f'{name}_ms'] = percentiles(way['received'])
        found[f'{name}_from_stamp_ms'] = percentiles(way['stamp'])
        found[f'{name}_cpu_ms'] = float(way['cpu'][0])
    for key, begin in (('times_faster', 'received'), ('times_faster_from_stamp', 'stamp')):
        found[key] = float(np.median(ways['usual'][begin]) / np.median(ways['ours'][begin]))
    return found


def _measured(
    start: Callable[[Node, str, Done], Callable[[], None]], size: str, device: str
) -> dict[str, np.ndarray]:
    """'received', 'stamp': milliseconds of each pair of pictures from there on. 'cpu': of processor for a
    pair, all threads of this process."""
    ready_ns: dict[int, tuple[int, int]] = {}

    def done(stamp: int, received: int) -> None:
        ready_ns[stamp] = time.time_ns(), received

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
    if len(ready_ns) - WARM_UP < (sent - WARM_UP) / 2:
        raise RuntimeError(f'only {len(ready_ns)} of {sent} pairs of frames came')
    rows = [(stamp, received, ready) for stamp, (ready, received) in sorted(ready_ns.items())]
    stamps, receptions, ready = np.array(rows[WARM_UP:]).T
    return {
        'stamp': (ready - stamps) * 1e-6,
        'received': (ready - receptions) * 1e-6,
        'cpu': np.array([spent / len(ready_ns) * 1e3]),
    }


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
    received: dict[str, int] = {}
    inputs = torch.zeros(len(VIEWS), 3, SQUARE, SQUARE, device=device)

    def keep(index: int, view: str, message: Image, info: dict[str, int]) -> None:
        pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        tensor = torch.from_numpy(_letterbox(pixels)).to(device)
        inputs[index] = (tensor.float() / 255 * 2 - 1).permute(2, 0, 1)
        if device == 'cuda':
            torch.cuda.synchronize()
        ready[view], received[view] = stamp_ns(message.header.stamp), info['received_timestamp']
        if len(set(ready.values())) == 1 and len(ready) == len(VIEWS):
            done(ready[view], max(received.values()))

    for index, view in enumerate(VIEWS):
        node.create_subscription(Image, topic_of(view), partial(keep, index, view), SENSOR)
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
    """The cameras' latest frames as the node keeps them, and when the middleware had received each."""

    def __init__(self, receptions: Receptions) -> None:
        self._streams = {view: Stream(view, topic_of(view)) for view in VIEWS}
        self._receptions, self._received_ns = receptions, dict.fromkeys(VIEWS, 0)
        self.fresh = Fresh(self._streams)

    def sink(self, view: str) -> FrameSink:
        class Sink:
            def keep(sink, frame: Frame) -> None:
                self._received_ns[view] = self._receptions.last_ns()
                self._streams[view].keep(frame)

            def drop(sink, reason: str) -> None:
                raise RuntimeError(reason)

        return Sink()

    def use(self) -> tuple[dict[str, Frame], int]:
        """The latest frames, which count as used, and when the later one was received."""
        samples = {view: stream.latest() for view, stream in self._streams.items()}
        frames = {view: sample.message for view, sample in samples.items() if sample is not None}
        for view, sample in samples.items():
            if sample is not None:
                self._streams[view].take(sample)
        return frames, max(self._received_ns.values())


def _ours(node: Node, device: str, done: Done) -> Callable[[], None]:
    receptions, interval_s = Receptions(), sys.getswitchinterval()
    switch_quickly()  # as the node's process does
    on_gpu, pairs, prepare = device == 'cuda', _Pairs(receptions), _preparation(device)
    ended, used = threading.Event(), threading.Event()

    def use() -> None:
        used.set()
        frames, received_ns = pairs.use()
        prepare(frames)
        stamps = {frame.stamp_ns for frame in frames.values()}
        if len(stamps) == 1:
            done(stamps.pop(), received_ns)

    def work() -> None:
        while not ended.is_set():
            if pairs.fresh.wait(0.2, use if on_gpu else None):
                if not used.is_set():
                    use()
                pairs.fresh.used()
                used.clear()

    rings = {view: FrameRing(pinned_memory if on_gpu else plain_memory, on_gpu) for view in VIEWS}
    stops = [DirectSource(node, topic_of(view), 'raw', rings[view]).start(pairs.sink(view)) for view in VIEWS]
    worker = threading.Thread(target=work)
    worker.start()

    def stop() -> None:
        for end in (*stops, ended.set, worker.join, receptions.end):
            end()
        sys.setswitchinterval(interval_s)

    return stop


def _preparation(device: str) -> Callable[[dict[str, Frame]], None]:
    """The network's input as the backends make it: on a GPU one graph, whose kernels read the slots."""
    if device == 'cpu':

        def on_cpu(frames: dict[str, Frame]) -> None:
            for view, frame in frames.items():
                resize_with_pad(CameraImage(frame).array(view), SQUARE, 'pil')

        return on_cpu
    from flashrt_ros.engine.cuda.device import find_gpu
    from flashrt_ros.engine.cuda.graph import StagedGraph
    from flashrt_ros.engine.cuda.library import KernelLibrary
    from flashrt_ros.engine.frame_inputs import FrameInputs

    vision, library = PI05.vision, KernelLibrary(find_gpu())
    stream = library.context.new_stream()
    inputs = FrameInputs(library, vision, 'pil', len(VIEWS), stream)
    rows = len(VIEWS) * vision.tokens
    patches = torch.empty(rows, inputs.sizes.columns, dtype=torch.bfloat16, device='cuda')
    torch.cuda.synchronize()
    work = [('preprocess', lambda: inputs.launch(0, len(VIEWS), patches))]
    graph = StagedGraph(work, stream, torch.cuda.graph_pool_handle(), timed=False)

    def prepare(frames: dict[str, Frame]) -> None:
        inputs.write({view: CameraImage(frame) for view, frame in frames.items()})
        graph.launch()
        stream.synchronize()

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
