"""The tables of weights, applied in plain numpy as the kernel applies them, against Pillow and torch."""

import numpy as np
import pytest
import torch

from flashrt_ros.models.image import resize_with_pad
from flashrt_ros.pictures.resampling import BITS, fitted_size, taps
from pictures.scenes import demo_frames, natural_picture

SIZES = [(640, 480), (480, 640), (1280, 720), (641, 479), (224, 224), (224, 168), (100, 75), (37, 53), (4, 3)]


def applied(lines, table, convention):
    """Filter the last but one axis of [..., length, 3] as preprocess.cu does."""
    columns = table.first[:, None] + np.minimum(np.arange(table.weights.shape[1]), table.count[:, None] - 1)
    picked = lines[..., columns, :]
    if convention == 'torch':
        return (picked * table.weights[..., None]).sum(-2, dtype=np.float32)
    summed = (picked.astype(np.int64) * table.weights[..., None]).sum(-2) + (1 << (BITS - 1))
    assert summed.max(initial=0) < 1 << 31
    return np.minimum(summed >> BITS, 255).astype(np.uint8)


def resized(pixels, size, convention):
    """uint8 [height, width, 3] -> [size, size, 3] of bytes or of floats from 0 to 255."""
    height, width = pixels.shape[:2]
    inner_width, inner_height = fitted_size(width, height, size)
    narrow = applied(pixels, taps(width, inner_width, convention), convention)
    small = applied(narrow.swapaxes(0, 1), taps(height, inner_height, convention), convention).swapaxes(0, 1)
    square = np.zeros((size, size, 3), small.dtype)
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    square[top : top + inner_height, left : left + inner_width] = small
    return square


@pytest.mark.parametrize('size', SIZES)
def test_pil_to_the_bit(size):
    for pixels in (natural_picture(*size[::-1]), random_picture(size)):
        expected = (resize_with_pad(pixels, 224, 'pil').permute(1, 2, 0) + 1) * 127.5
        np.testing.assert_array_equal(resized(pixels, 224, 'pil'), expected.round().numpy())


@pytest.mark.parametrize('size', SIZES)
def test_torch_within_a_thousandth_of_a_step(size):
    for pixels in (natural_picture(*size[::-1]), random_picture(size)):
        expected = (resize_with_pad(pixels, 224, 'torch').permute(1, 2, 0) + 1) * 127.5
        found = torch.from_numpy(resized(pixels, 224, 'torch').astype(np.float32))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_frames_of_the_demo():
    for pixels in demo_frames():
        expected = (resize_with_pad(pixels, 224, 'pil').permute(1, 2, 0) + 1) * 127.5
        np.testing.assert_array_equal(resized(pixels, 224, 'pil'), expected.round().numpy())


def random_picture(size):
    return np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
