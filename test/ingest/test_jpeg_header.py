"""What is read of a JPEG before any decoder sees it, held to what Pillow wrote and reads."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures.scenes import natural_picture
from PIL import Image

from flashrt_ros.ingest.jpeg_header import jpeg_header, scan_end

PICTURE = Image.fromarray(natural_picture(45, 67))


def jpeg(picture=PICTURE, **options):
    file = io.BytesIO()
    picture.save(file, 'JPEG', **options)
    return file.getvalue()


def header_of(data):
    return jpeg_header(np.frombuffer(data, np.uint8))


EXIF = Image.Exif()
EXIF[0x010E] = 'x' * 40_000

PLAIN = {
    '4:2:0': jpeg(subsampling='4:2:0'),
    '4:2:2': jpeg(subsampling='4:2:2'),
    '4:4:4': jpeg(subsampling='4:4:4'),
    'grey': jpeg(PICTURE.convert('L')),
    'restart markers': jpeg(restart_marker_rows=1),
    'tables of its own': jpeg(optimize=True),
    'a long comment': jpeg(exif=EXIF, comment=b'\xff\xd9' * 9),
    'trailing zeros': jpeg() + bytes(500),
    'fill bytes': jpeg()[:2] + b'\xff\xff' + jpeg()[2:],
}


@pytest.mark.parametrize('name', PLAIN)
def test_plain_files(name):
    data = PLAIN[name]
    header = header_of(data)
    assert (header.width, header.height, header.plain) == (67, 45, True)
    assert scan_end(np.frombuffer(data, np.uint8), header) == len(data.rstrip(b'\0'))


def without_tables(data):
    """As motion JPEG comes from some webcams."""
    while (begin := data.find(b'\xff\xc4')) >= 0:
        data = data[:begin] + data[begin + 2 + int.from_bytes(data[begin + 2 : begin + 4], 'big') :]
    return data


def as_frame(data, marker, precision=8):
    begin = data.index(b'\xff\xc0')
    return (
        data[:begin]
        + bytes([0xFF, marker])
        + data[begin + 2 : begin + 4]
        + bytes([precision])
        + data[begin + 5 :]
    )


UNUSUAL = {
    'progressive': jpeg(progressive=True),
    'extended': as_frame(jpeg(), 0xC1),
    '12 bits': as_frame(jpeg(), 0xC0, 12),
    'arithmetic codes': as_frame(jpeg(), 0xC9),
    'CMYK': jpeg(PICTURE.convert('CMYK')),
    'RGB as it is': jpeg(keep_rgb=True),
    'no tables': without_tables(jpeg()),
}


@pytest.mark.parametrize('name', UNUSUAL)
def test_unusual_files_are_not_plain(name):
    header = header_of(UNUSUAL[name])
    assert header is not None
    assert not header.plain


@pytest.mark.parametrize(
    'data',
    [
        jpeg()[: jpeg().index(b'\xff\xda')],
        jpeg()[:100],
        b'\xff\xd8\xff',
        b'\xff\xd8\xff' + bytes(50),
        jpeg()[:2] + jpeg()[jpeg().index(b'\xff\xc0') : jpeg().index(b'\xff\xc4')] + jpeg()[2:],
    ],
    ids=['no scan', 'cut', 'nothing', 'zeros', 'two frames'],
)
def test_files_that_make_no_sense(data):
    assert header_of(data) is None


@pytest.mark.parametrize(
    'change', [lambda d: d[:-2], lambda d: d[: len(d) // 2], lambda d: d[:-2] + b'\xff\xc4' + d[-2:]]
)
def test_a_scan_without_its_end(change):
    data = np.frombuffer(change(jpeg()), np.uint8)
    assert scan_end(data, jpeg_header(data)) is None


@settings(max_examples=200)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), cut=st.integers(0, 900)
)
def test_flipped_bytes_give_what_pillow_reads_or_nothing(flips, cut):
    """A plain header is one that others read alike."""
    data = bytearray(jpeg())
    for position, value in flips:
        data[2 + position % 620] = value
    data = bytes(data[: len(data) - cut])
    header = header_of(data)
    if header is None or not header.plain:
        return
    try:
        with Image.open(io.BytesIO(data), formats=('JPEG',)) as picture:
            assert picture.size == (header.width, header.height)
    except (OSError, SyntaxError, ValueError):
        return
