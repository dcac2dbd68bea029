"""sensor_msgs/Image to an RGB array.

Encodings are those of sensor_msgs/image_encodings.hpp; the ones not listed here are refused by name.
"""

from __future__ import annotations

import numpy as np

from flashrt_ros.errors import ObservationError
from flashrt_ros.frame import Frame

_CHANNELS: dict[str, tuple[int, tuple[int, int, int]]] = {
    'rgb8': (3, (0, 1, 2)),
    'bgr8': (3, (2, 1, 0)),
    'rgba8': (4, (0, 1, 2)),
    'bgra8': (4, (2, 1, 0)),
    'mono8': (1, (0, 0, 0)),
}
"""Encoding -> bytes per pixel, and which of them are red, green and blue."""

SUPPORTED = tuple(_CHANNELS)


def decode_image(frame: Frame, view: str) -> np.ndarray:
    """Raw frame -> uint8 [height, width, 3], RGB. Shares the frame's memory where it is rgb8.

    view: named in errors.
    Raises ObservationError for an unsupported encoding or for sizes that contradict each other.
    """
    if frame.encoding not in _CHANNELS:
        known = ', '.join(SUPPORTED)
        raise ObservationError(
            f"the encoding '{frame.encoding}' is not supported",
            view,
            f'let the camera driver publish one of {known}',
        )
    channels, order = _CHANNELS[frame.encoding]
    pixels = _pixels(frame, channels, view)
    return pixels if order == (0, 1, 2) and channels == 3 else np.ascontiguousarray(pixels[:, :, order])


def _pixels(frame: Frame, channels: int, view: str) -> np.ndarray:
    """uint8 [height, width, channels], a view on the message's rows without their padding."""
    height, width, step = int(frame.height), int(frame.width), int(frame.step)
    row = width * channels
    if height == 0 or width == 0:
        raise ObservationError(f'the image is empty ({width} x {height})', view, 'check the camera driver')
    if step < row:
        raise ObservationError(
            f"step {step} is less than the {row} bytes of {width} pixels in '{frame.encoding}'",
            view,
            'let the camera driver set step to the bytes of a row',
        )
    data = frame.data
    if data.size != step * height:
        raise ObservationError(
            f'{data.size} bytes of data, but step {step} x height {height} is {step * height}',
            view,
            'the message is truncated or its header is wrong: check the camera driver',
        )
    return data.reshape(height, step)[:, :row].reshape(height, width, channels)
