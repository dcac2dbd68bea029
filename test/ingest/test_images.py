"""Images become RGB arrays, or an error that says what is wrong with them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures.scenes import natural_picture

from flashrt_ros.errors import ObservationError
from flashrt_ros.ingest.compressed import decode_compressed, decompress
from flashrt_ros.ingest.ring import FrameRing
from flashrt_ros.ingest.typed import compressed_frame, image_frame
from flashrt_ros.pictures import ENCODINGS, decode_image
from ingest.messages import compressed, compressed_bytes, image, smooth_picture

RGB = smooth_picture()
ALPHA = np.full((*RGB.shape[:2], 1), 9, np.uint8)
IN_ENCODING = {
    'rgb8': RGB,
    'bgr8': RGB[:, :, ::-1],
    'rgba8': np.concatenate([RGB, ALPHA], axis=2),
    'bgra8': np.concatenate([RGB[:, :, ::-1], ALPHA], axis=2),
}


def rgb_of(message):
    return decode_image(image_frame(message), 'front')


def picture_of(message):
    return decode_compressed(compressed_frame(message), 'wrist')


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', IN_ENCODING)
def test_colour_encodings_become_rgb(encoding, padding):
    message = image(np.ascontiguousarray(IN_ENCODING[encoding]), encoding, padding)
    np.testing.assert_array_equal(rgb_of(message), RGB)


def test_grey_becomes_three_equal_channels():
    decoded = rgb_of(image(RGB[:, :, :1], 'mono8', padding=3))
    np.testing.assert_array_equal(decoded, np.repeat(RGB[:, :, :1], 3, axis=2))


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1', '8UC3', 'nv24', '', 'RGB8'])
def test_an_unsupported_encoding_is_named_with_those_supported(encoding):
    with pytest.raises(
        ObservationError, match=f"front: the encoding '{encoding}' is not supported.*rgb8, .*nv12"
    ):
        rgb_of(image(RGB, encoding))


def test_a_step_shorter_than_the_width():
    message = image(RGB)
    message.step -= 1
    with pytest.raises(ObservationError, match=r"step 191 is less than the 192 bytes of 64 pixels in 'rgb8'"):
        rgb_of(message)


@pytest.mark.parametrize('change', [-1, 1, -len(RGB.tobytes())])
def test_data_that_is_not_as_long_as_its_header_says(change):
    message = image(RGB)
    message.data = message.data[:change] if change < 0 else message.data + message.data[:change]
    with pytest.raises(ObservationError, match=r'bytes of data, but step 192 x height 48 is 9216'):
        rgb_of(message)


def test_an_empty_image():
    with pytest.raises(ObservationError, match=r'the image is empty \(0 x 0\)'):
        rgb_of(image(np.zeros((0, 0, 3), np.uint8)))


@given(
    height=st.integers(0, 2**32 - 1),
    width=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**32 - 1),
    size=st.integers(0, 300),
    encoding=st.sampled_from([*ENCODINGS, '16UC1']),
)
def test_lying_headers_are_refused_and_never_read_past_the_data(height, width, step, size, encoding):
    message = image(RGB, encoding)
    message.height, message.width, message.step, message.data = height, width, step, message.data[:size]
    try:
        decoded = rgb_of(message)
    except ObservationError:
        return
    assert decoded.shape == (height, width, 3)
    assert step * ENCODINGS[encoding].rows(height) == size


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_compressed_colour(kind):
    decoded = picture_of(compressed(RGB, kind))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - RGB).max() <= (0 if kind == 'PNG' else 12)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_compressed_grey_becomes_rgb(kind):
    assert picture_of(compressed(RGB[:, :, 0], kind)).shape == RGB.shape


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_a_truncated_picture_is_refused_unless_every_pixel_is_there(kind):
    data = compressed(RGB, kind).data
    whole = picture_of(compressed_bytes(data))
    refused = 0
    for length in range(8, len(data)):
        try:
            np.testing.assert_array_equal(picture_of(compressed_bytes(data[:length])), whole)
        except ObservationError as error:
            refused += 'corrupt' in error.what
    assert refused > 0.7 * len(data)


@pytest.mark.parametrize('data', [b'', b'GIF89a' + bytes(100), b'RIFF1234WEBP', bytes(2000)])
def test_other_formats_are_refused_by_their_first_bytes(data):
    first = data[:4].hex() or 'none'
    with pytest.raises(
        ObservationError, match=f"neither JPEG nor PNG .format 'free text', .*first bytes {first}"
    ):
        picture_of(compressed_bytes(data))


def test_a_depth_picture_is_refused():
    depth = (RGB[:, :, 0].astype(np.uint16) * 100).astype(np.uint16)
    with pytest.raises(ObservationError, match="a PNG of mode 'I;16' is not an 8-bit colour or grey image"):
        picture_of(compressed(depth, 'PNG'))


@pytest.mark.parametrize(
    ('side', 'message'), [(5000, '5000 x 5000 pixels are more than 3840 x 2160'), (65535, 'exceeds limit')]
)
def test_a_header_that_demands_gigabytes_is_refused(side, message):
    data = bytearray(compressed(RGB, 'JPEG').data)
    frame = data.index(b'\xff\xc0')
    data[frame + 5 : frame + 9] = side.to_bytes(2, 'big') * 2
    with pytest.raises(ObservationError, match=message):
        picture_of(compressed_bytes(bytes(data)))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(['JPEG', 'PNG']),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 40),
)
def test_flipped_bytes_give_a_picture_or_an_error_but_never_a_crash(kind, flips, cut):
    data = bytearray(compressed(RGB, kind).data)
    for position, value in flips:
        data[position % len(data)] = value
    try:
        decoded = picture_of(compressed_bytes(bytes(data[: len(data) - cut])))
    except ObservationError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3


def of_ring(data, ring):
    return decompress(compressed_frame(compressed_bytes(data, 5), 6, 7), 'wrist', ring)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_pixels_go_straight_into_a_slot_of_the_ring(kind):
    ring, data = FrameRing(slots=2), compressed(RGB, kind).data
    frame = of_ring(data, ring)
    height, width, _ = RGB.shape
    assert (frame.encoding, frame.height, frame.width, frame.step) == ('rgb8', height, width, 3 * width)
    assert (frame.stamp_ns, frame.received_ns, frame.sequence) == (5, 6, 7)
    np.testing.assert_array_equal(rgb_of_frame(frame), picture_of(compressed_bytes(data)))
    held = [frame, of_ring(data, ring)]
    assert ring.free_slot() is None
    grown = ring.grown
    beyond = of_ring(data, ring)
    np.testing.assert_array_equal(rgb_of_frame(beyond), rgb_of_frame(frame))
    held.clear()
    del frame
    assert ring.free_slot() is not None
    for _ in range(5):
        of_ring(data, ring)
    assert ring.grown == grown


def test_a_corrupt_picture_leaves_the_slot_free():
    ring, data = FrameRing(slots=1), compressed(RGB, 'JPEG').data
    with pytest.raises(ObservationError, match='corrupt JPEG'):
        of_ring(data[: len(data) // 2], ring)
    assert ring.free_slot() is not None


def rgb_of_frame(frame):
    return decode_image(frame, 'wrist')


def decoded(data):
    """The pixels, or None if the file is refused."""
    try:
        return picture_of(compressed_bytes(data))
    except ObservationError:
        return None


@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 300),
    grey=st.booleans(),
)
def test_what_libjpeg_turbo_takes_pillow_takes_too_with_the_same_pixels(flips, cut, grey):
    pytest.importorskip('simplejpeg')
    data = bytearray(compressed(RGB[:, :, 0] if grey else RGB, 'JPEG').data)
    for position, value in flips:
        data[position % len(data)] = value
    data = bytes(data[: len(data) - cut])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('flashrt_ros.ingest.compressed.simplejpeg', None)
        by_pillow = decoded(data)
    by_turbo = decoded(data)
    if by_turbo is not None:
        np.testing.assert_array_equal(by_turbo, by_pillow)
    elif not flips and not cut:
        raise AssertionError('a whole picture was refused')


@pytest.mark.parametrize('rest', [b'\x00\x00', b'\x12\x34\x56', bytes(700)])
@pytest.mark.parametrize('after', [b'', bytes(9)])
def test_what_a_webcam_leaves_before_the_end_of_its_pictures_does_no_harm(rest, after):
    data = bytes(compressed(RGB, 'JPEG').data)
    whole = picture_of(compressed_bytes(data))
    with_garbage = data[:-2] + rest + data[-2:] + after
    np.testing.assert_array_equal(picture_of(compressed_bytes(with_garbage)), whole)


def damaged(options):
    """A picture of which `lost` bytes have gone on the way, and yet it has an end."""
    data = bytes(compressed(natural_picture(120, 160), 'JPEG', **options).data)
    middle = len(data) // 2
    return {
        'the second half': data[:middle] + data[-2:],
        'a packet': data[:middle] + data[middle + 500 :],
        'the contents of a packet': data[:middle] + bytes(500) + data[middle + 500 :],
    }


@pytest.mark.parametrize('options', [{}, {'restart_marker_rows': 1}], ids=['plain', 'restarts'])
@pytest.mark.parametrize('lost', damaged({}))
def test_a_picture_that_lost_a_part_inside_is_refused(lost, options):
    """As USB and radio lose packets. Pillow alone makes the missing part grey."""
    pytest.importorskip('simplejpeg')
    with pytest.raises(ObservationError, match=r'corrupt JPEG of .* bytes \(Corrupt JPEG data: '):
        picture_of(compressed_bytes(damaged(options)[lost]))
