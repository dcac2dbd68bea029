"""Crop, rotation and flip, as arrays and as the steps that the kernel walks by."""

import itertools

import numpy as np
import pytest

from flashrt_ros.errors import ObservationError
from flashrt_ros.pictures import CameraImage, Framing
from flashrt_ros.pictures.framing import FLIPS, TURNS
from pictures.scenes import natural_picture

PICTURE = natural_picture(30, 44)
CROPS = (None, (3, 5, 20, 11))


def test_an_upside_down_camera():
    np.testing.assert_array_equal(Framing(rotate=180).apply(PICTURE, 'wrist'), PICTURE[::-1, ::-1])


def test_a_quarter_turn_is_clockwise():
    turned = Framing(rotate=90).apply(PICTURE, 'wrist')
    assert turned.shape == (44, 30, 3)
    np.testing.assert_array_equal(turned[0, -1], PICTURE[0, 0])  # what was on the left is on top
    np.testing.assert_array_equal(Framing(rotate=270).apply(turned, 'wrist'), PICTURE)


def test_horizontal_exchanges_left_and_right_after_turning():
    turned = Framing(90).apply(PICTURE, 'wrist')
    np.testing.assert_array_equal(Framing(90, 'horizontal').apply(PICTURE, 'wrist'), turned[:, ::-1])
    np.testing.assert_array_equal(Framing(90, 'vertical').apply(PICTURE, 'wrist'), turned[::-1])


def test_a_crop_is_in_pixels_of_the_frame_as_it_comes():
    kept = Framing(270, 'none', (3, 5, 20, 11)).apply(PICTURE, 'wrist')
    np.testing.assert_array_equal(Framing(90).apply(kept, 'wrist'), PICTURE[5:16, 3:23])


@pytest.mark.parametrize(('rotate', 'flip', 'crop'), list(itertools.product(TURNS, FLIPS, CROPS)))
def test_steps_lead_to_the_same_pixels(rotate, flip, crop):
    framing = Framing(rotate, flip, crop)
    expected = framing.apply(PICTURE, 'wrist')
    width, height = framing.size(44, 30, 'wrist')
    assert expected.shape == (height, width, 3)
    (x, y), along, down = framing.steps(44, 30, 'wrist')
    row, column = np.mgrid[0:height, 0:width]
    columns = x + column * along[0] + row * down[0]
    rows = y + column * along[1] + row * down[1]
    np.testing.assert_array_equal(PICTURE[rows, columns], expected)


def test_a_crop_beyond_the_frame_is_refused_before_a_pixel_is_read():
    image = CameraImage.of(PICTURE, Framing(crop=(30, 0, 20, 30)))
    for use in (image.check, image.array):
        message = r'wrist: the crop of 20 x 30 pixels at \(30, 0\) .* frame of 44 x 30. Correct cameras.wrist'
        with pytest.raises(ObservationError, match=message):
            use('wrist')
