"""Every encoding as an RGB array: against OpenCV, and by what the encodings mean."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flashrt_ros.errors import ObservationError
from flashrt_ros.frame import Frame
from flashrt_ros.pictures import ENCODINGS, decode_image
from pictures.scenes import natural_picture, random_frame

WIDTH, HEIGHT = 38, 26
OPENCV = np.load(Path(__file__).with_name('opencv.npz'))


@pytest.mark.parametrize('name', ENCODINGS)
def test_opencv_makes_the_same_of_random_bytes(name):
    frame = random_frame(name, WIDTH, HEIGHT, seed=list(ENCODINGS).index(name))
    np.testing.assert_array_equal(decode_image(frame, 'front'), OPENCV[name])


@pytest.mark.parametrize('name', ENCODINGS)
@pytest.mark.parametrize('padding', [1, 10])
def test_padding_behind_the_rows_changes_nothing(name, padding):
    plain = random_frame(name, WIDTH, HEIGHT)
    rows = plain.data.reshape(-1, plain.step)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    frame = replace(plain, data=padded.reshape(-1), step=plain.step + padding)
    np.testing.assert_array_equal(decode_image(frame, 'front'), decode_image(plain, 'front'))


@pytest.mark.parametrize('name', [name for name in ENCODINGS if ENCODINGS[name].size == 2])
def test_both_byte_orders(name):
    little = random_frame(name, WIDTH, HEIGHT)
    big = replace(little, data=little.data.view(np.uint16).byteswap().view(np.uint8), is_bigendian=True)
    np.testing.assert_array_equal(decode_image(big, 'front'), decode_image(little, 'front'))


def test_sixteen_bits_become_the_nearest_of_eight():
    values = np.arange(1 << 16, dtype='<u2')
    frame = Frame(values.view(np.uint8), 'mono16', 1 << 16, 1, 1 << 17)
    np.testing.assert_array_equal(decode_image(frame, 'x')[0, :, 1], np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize(
    ('yuv', 'rgb'), [((16, 128, 128), 0), ((235, 128, 128), 255), ((126, 128, 128), 128), ((0, 128, 128), 0)]
)
@pytest.mark.parametrize('name', ['uyvy', 'yuyv', 'nv12', 'nv21'])
def test_luma_runs_from_16_to_235(name, yuv, rgb):
    luma, u, v = yuv
    bytes_of = {
        'uyvy': [u, luma, v, luma] * 2,
        'yuyv': [luma, u, luma, v] * 2,
        'nv12': [luma, luma, luma, luma, u, v],
        'nv21': [luma, luma, luma, luma, v, u],
    }
    step = 2 if name.startswith('nv') else 4
    frame = Frame(np.array(bytes_of[name], np.uint8), name, 2, 2, step)
    np.testing.assert_array_equal(decode_image(frame, 'front'), np.full((2, 2, 3), rgb))


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize(('bits', 'scale'), [(8, 1), (16, 257)])
def test_a_colour_filter_in_front_of_a_smooth_picture_is_undone(pattern, bits, scale):
    y, x = np.mgrid[0:40, 0:60]
    picture = np.stack([2 * y + x, 200 - 2 * x, 3 * y + 20], -1).astype(np.uint8)
    filtered = np.empty((40, 60), np.uint8 if bits == 8 else np.dtype('<u2'))
    for place, colour in enumerate(pattern):
        row, column = divmod(place, 2)
        values = picture[row::2, column::2, 'rgb'.index(colour)].astype(filtered.dtype)
        filtered[row::2, column::2] = values * scale
    frame = Frame(filtered.view(np.uint8).reshape(-1), f'bayer_{pattern}{bits}', 60, 40, filtered.strides[0])
    decoded = decode_image(frame, 'front').astype(int)
    assert np.abs(decoded - picture)[1:-1, 1:-1].max() <= 1


def test_a_frame_of_rgb8_is_not_copied():
    pixels = natural_picture()
    frame = Frame(pixels.reshape(-1), 'rgb8', 128, 96, 384)
    assert np.shares_memory(decode_image(frame, 'front'), pixels)


@pytest.mark.parametrize(
    ('name', 'width', 'height', 'message'),
    [
        ('uyvy', 5, 4, "5 x 4 pixels cannot share their chroma in 'uyvy'. Choose an even resolution"),
        ('nv12', 4, 5, "4 x 5 pixels cannot share their chroma in 'nv12'"),
        ('bayer_rggb8', 2, 9, "2 x 9 pixels of 'bayer_rggb8' show no colour"),
    ],
)
def test_sizes_that_an_encoding_cannot_have(name, width, height, message):
    with pytest.raises(ObservationError, match=message):
        decode_image(random_frame(name, width, height), 'front')


def test_the_chroma_of_a_semiplanar_frame_counts_among_its_data():
    frame = random_frame('nv12', 8, 6)
    cut = replace(frame, data=frame.data[: 8 * 6])
    with pytest.raises(ObservationError, match=r"48 bytes .* height 6 \(9 with the chroma of 'nv12'\) is 72"):
        decode_image(cut, 'front')
