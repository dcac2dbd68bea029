"""The image path alone, from a message that has arrived to the network's input, ours and as it is usually
written, on the same messages in the same process.

usual: typed callback, numpy view of the pixels, cv2.resize (or Pillow where OpenCV is missing) with padding,
upload, float, scale to [-1, 1], channels first. ours: serialized take into the ring, and what the backend
makes of a frame; on the CPU that is antialiased, which cv2.resize is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
import torch
from rclpy.node import Node
from sensor_msgs.msg import Image

from benchmarks.e2e.camera import SENSOR, pictures, size_of, stamped
from benchmarks.e2e.stages import percentiles
from flashrt_ros.frame import Frame
from flashrt_ros.ingest.ring import FrameRing, pinned_memory, plain_memory
from flashrt_ros.models.image import resize_with_pad
from flashrt_ros.models.spec import PI05
from flashrt_ros.nodes.frame_sources import DirectSource
from flashrt_ros.pictures import CameraImage

FRAMES = 200
SQUARE = 224


def compare(size: str, device: str, frames: int = FRAMES) -> dict[str, Any]:
    """Milliseconds of each way and how many times faster ours is, for one camera of this size."""
    rclpy.init()
    node = rclpy.create_node('image_path')
    try:
        width, height = size_of(size)
        messages = pictures(width, height)
        found = {
            'usual': _times(*_usual(node, device), node, messages, frames),
            'ours': _times(*_ours(node, device), node, messages, frames),
        }
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    usual, ours = (np.array(found[name]) for name in ('usual', 'ours'))
    return {
        'size': size,
        'device': device,
        'resize': _resize.__name__,
        'usual_take_ms': percentiles(usual[:, 0]),
        'ours_take_ms': percentiles(ours[:, 0]),
        'usual_ms': percentiles(usual[:, 1]),
        'ours_ms': percentiles(ours[:, 1]),
        'times_faster': float(np.median(usual[:, 1]) / np.median(ours[:, 1])),
    }


Take = Callable[[], Any]
"""A message of the reader, or None if there is none."""

Prepare = Callable[[Any], None]
"""What was taken -> the network's input."""


def _times(
    take: Take, prepare: Prepare, node: Node, messages: list[bytearray], frames: int
) -> list[tuple[float, float]]:
    """Milliseconds from a message that lies in the reader to when it is taken, and to the network's input."""
    publisher = node.create_publisher(Image, 'camera', SENSOR)
    time.sleep(0.5)
    spent = []
    for index in range(frames + 20):
        publisher.publish(stamped(messages[index % len(messages)], time.time_ns()))
        time.sleep(0.01)  # until it lies in the reader
        begin = time.perf_counter()
        found = take()
        taken = time.perf_counter()
        if found is None:
            continue
        prepare(found)
        if index >= 20:
            spent.append(((taken - begin) * 1e3, (time.perf_counter() - begin) * 1e3))
    node.destroy_publisher(publisher)
    if len(spent) < frames / 2:
        raise RuntimeError(f'only {len(spent)} of {frames} frames came')
    return spent


def _usual(node: Node, device: str) -> tuple[Take, Prepare]:
    subscription = node.create_subscription(Image, 'camera', lambda message: None, SENSOR)

    def take() -> Any:
        taken = subscription.handle.take_message(Image, False)
        return None if taken is None else taken[0]

    def prepare(message: Any) -> None:
        pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        tensor = torch.from_numpy(_letterbox(pixels)).to(device)
        _ = (tensor.float() / 255 * 2 - 1).permute(2, 0, 1)[None].contiguous()
        if device == 'cuda':
            torch.cuda.synchronize()

    return take, prepare


def _letterbox(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    ratio = SQUARE / max(height, width)
    fitted = _resize(pixels, round(width * ratio), round(height * ratio))
    square = np.zeros((SQUARE, SQUARE, 3), np.uint8)
    top, left = (SQUARE - fitted.shape[0]) // 2, (SQUARE - fitted.shape[1]) // 2
    square[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return square


def _ours(node: Node, device: str) -> tuple[Take, Prepare]:
    mapped = device == 'cuda'
    ring = FrameRing(pinned_memory if mapped else plain_memory, mapped)
    latest: list[Frame] = []

    class Latest:
        def keep(self, frame: Frame) -> None:
            latest[:] = [frame]

        def drop(self, reason: str) -> None:
            raise RuntimeError(reason)

    DirectSource(node, 'camera', 'raw', ring).start(Latest())
    waiting = next(one for one in node.waitables if type(one).__name__ == '_Frames')

    def take() -> Frame | None:
        latest.clear()
        waiting.take_data()
        return latest[0] if latest else None

    return take, _preparation(device)


def _preparation(device: str) -> Callable[[Frame], None]:
    """The network's input as the backends make it: on a GPU one kernel, which reads the slot itself."""
    if device == 'cpu':

        def on_cpu(frame: Frame) -> None:
            resize_with_pad(CameraImage(frame).array('camera'), SQUARE, 'pil')

        return on_cpu
    from flashrt_ros.engine.cuda.device import find_gpu
    from flashrt_ros.engine.cuda.library import KernelLibrary
    from flashrt_ros.engine.frame_inputs import FrameInputs

    vision = PI05.vision
    inputs = FrameInputs(KernelLibrary(find_gpu()), vision, 'pil', views=1)
    patches = torch.empty(vision.tokens, inputs.sizes.columns, dtype=torch.bfloat16, device='cuda')

    def prepare(frame: Frame) -> None:
        inputs.write({'camera': CameraImage(frame)})
        inputs.launch(0, 1, patches)
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
