"""One camera image -> what the vision tower takes: a square in [-1, 1], aspect kept, black around.

Two conventions, which give visibly different pixels when an image shrinks:
`pil` (openpi): PIL's bilinear filter, antialiased, on uint8; then x / 255 * 2 - 1.
`torch` (lerobot): x / 255, then `interpolate` bilinear without antialiasing; then x * 2 - 1.

Source: openpi_client `image_tools.py` at 15a9616; lerobot 0.6.1 `policies/common/vla_utils.py`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flashrt_ros.errors import ObservationError
from flashrt_ros.pictures.resampling import fitted_size

RESIZES = ('pil', 'torch')


def check_image(view: str, image: np.ndarray) -> None:
    """Raise ObservationError unless the image is uint8 [height, width, 3]."""
    where = f"image of view '{view}'"
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ObservationError(f'the pixels are {kind}', where, 'give uint8 RGB values from 0 to 255')
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ObservationError(f'the shape is {list(image.shape)}', where, 'give [height, width, 3], RGB')


def resize_with_pad(image: np.ndarray, size: int, convention: str) -> Tensor:
    """uint8 [height, width, 3] RGB, any size -> fp32 [3, size, size] in [-1, 1]."""
    return _pil(image, size) if convention == 'pil' else _torch(image, size)


def square_bytes(image: np.ndarray, size: int) -> np.ndarray:
    """The `pil` convention before normalising: uint8 [height, width, 3] -> uint8 [size, size, 3]."""
    width, height = fitted_size(image.shape[1], image.shape[0], size)
    if image.shape[:2] == (size, size):
        return image
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = np.asarray(small)
    return square


def _pil(image: np.ndarray, size: int) -> Tensor:
    return _channels_first(square_bytes(image, size)) / 255 * 2 - 1


def _torch(image: np.ndarray, size: int) -> Tensor:
    pixels = _channels_first(image)[None] / 255
    if image.shape[:2] != (size, size):
        width, height = fitted_size(image.shape[1], image.shape[0], size)
        pixels = F.interpolate(pixels, size=(height, width), mode='bilinear', align_corners=False).clamp(0, 1)
        top, left = (size - height) // 2, (size - width) // 2
        pixels = F.pad(pixels, (left, size - width - left, top, size - height - top))
    return pixels[0] * 2 - 1


def _channels_first(image: np.ndarray) -> Tensor:
    """fp32 [3, height, width]; a copy, because a camera's buffer may be read-only or turned around."""
    return torch.from_numpy(image.astype(np.float32, order='C')).permute(2, 0, 1)
