"""sensor_msgs/Image to an RGB array.

Encodings are those of sensor_msgs/image_encodings.hpp; the ones not listed here are refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flashrt_ros.errors import ObservationError

_CHANNELS: dict[str, tuple[int, tuple[int, int, int]]] = {
    'rgb8': (3, (0, 1, 2)),
    'bgr8': (3, (2, 1, 0)),
    'rgba8': (4, (0, 1, 2)),
    'bgra8': (4, (2, 1, 0)),
    'mono8': (1, (0, 0, 0)),
}
"""Encoding -> bytes per pixel, and which of them are red, green and blue."""

SUPPORTED = tuple(_CHANNELS)


def decode_image(message: Any, view: str) -> np.ndarray:
    """Raw image message -> uint8 [height, width, 3], RGB. Shares the message's memory where it is rgb8.

    message: has the fields of sensor_msgs/Image. view: named in errors.
    Raises ObservationError for an unsupported encoding or for sizes that contradict each other.
    """
    if message.encoding not in _CHANNELS:
        known = ', '.join(SUPPORTED)
        raise ObservationError(
            f"the encoding '{message.encoding}' is not supported",
            view,
            f'let the camera driver publish one of {known}',
        )
    channels, order = _CHANNELS[message.encoding]
    pixels = _pixels(message, channels, view)
    return pixels if order == (0, 1, 2) and channels == 3 else np.ascontiguousarray(pixels[:, :, order])


def _pixels(message: Any, channels: int, view: str) -> np.ndarray:
    """uint8 [height, width, channels], a view on the message's rows without their padding."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    row = width * channels
    if height == 0 or width == 0:
        raise ObservationError(f'the image is empty ({width} x {height})', view, 'check the camera driver')
    if step < row:
        raise ObservationError(
            f"step {step} is less than the {row} bytes of {width} pixels in '{message.encoding}'",
            view,
            'let the camera driver set step to the bytes of a row',
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size != step * height:
        raise ObservationError(
            f'{data.size} bytes of data, but step {step} x height {height} is {step * height}',
            view,
            'the message is truncated or its header is wrong: check the camera driver',
        )
    return data.reshape(height, step)[:, :row].reshape(height, width, channels)
