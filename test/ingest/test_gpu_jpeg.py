"""nvJPEG beside libjpeg-turbo: the same pictures, nothing of a damaged one, straight into pinned slots."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures.scenes import natural_picture
from PIL import Image

from flashrt_ros.errors import BackendError, ObservationError
from flashrt_ros.frame import Frame
from flashrt_ros.ingest.compressed import decompress
from flashrt_ros.ingest.ring import FrameRing, pinned_memory

pytestmark = pytest.mark.gpu

WITHIN = {'4:4:4': (6, 0.5), '4:2:2': (48, 1.0), '4:2:0': (48, 1.0)}
"""Most and mean difference from libjpeg-turbo, of 255: the two round otherwise, and interpolate chroma
otherwise where the picture is wild, which real pictures are in few places."""


@pytest.fixture(scope='module')
def decoder():
    if not torch.cuda.is_available():
        pytest.skip('needs an NVIDIA GPU')
    pytest.importorskip('simplejpeg')
    from flashrt_ros.ingest.gpu_jpeg import GpuJpeg
    from flashrt_ros.ingest.nvjpeg import NvJpeg

    try:
        library = NvJpeg()
    except BackendError as error:
        if 'no usable nvJPEG' in error.what:
            pytest.skip(error.what)
        raise
    decoder = GpuJpeg(library)
    yield decoder
    library.close()
    torch.cuda.synchronize()
    assert not decoder(np.frombuffer(jpeg(natural_picture()), np.uint8), None)


class Counted:
    """A decoder that counts what it takes and leaves."""

    trouble = ''

    def __init__(self, decoder):
        self._decoder, self.taken, self.left = decoder, 0, 0

    def __call__(self, data, pixels):
        done = self._decoder(data, pixels)
        self.taken, self.left = self.taken + done, self.left + (not done)
        return done


@pytest.fixture
def gpu(decoder):
    counted = Counted(decoder)
    yield counted
    assert decoder.trouble == ''


def real_picture(height=480, width=640, seed=0):
    """A photograph where one is installed, with the noise of a camera; else one that looks like many."""
    try:
        import matplotlib

        file = Path(matplotlib.get_data_path(), 'sample_data', 'grace_hopper.jpg')
        photograph = Image.open(file).convert('RGB').resize((width, height), Image.Resampling.LANCZOS)
    except (ImportError, OSError):
        return natural_picture(height, width, seed)
    noise = np.random.default_rng(seed).normal(0, 3, (height, width, 1))
    return np.clip(np.asarray(photograph) + noise, 0, 255).astype(np.uint8)


def jpeg(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', **{'quality': 80, **options})
    return file.getvalue()


def frame_of(data):
    return Frame(np.frombuffer(data, np.uint8), 'jpeg', 0, 0, 0)


def pixels_of(data, gpu=None, ring=None):
    frame = decompress(frame_of(data), 'front', ring, gpu)
    return frame.data.reshape(frame.height, frame.width, 3).astype(int)


@pytest.mark.parametrize('quality', [80, 95])
@pytest.mark.parametrize('size', [(480, 640), (720, 1280), (123, 457)])
@pytest.mark.parametrize('subsampling', WITHIN)
def test_a_real_picture_looks_as_from_the_cpu(gpu, subsampling, size, quality):
    data = jpeg(real_picture(*size), subsampling=subsampling, quality=quality)
    error = np.abs(pixels_of(data, gpu) - pixels_of(data))
    most, mean = WITHIN[subsampling]
    print(f'{subsampling} {size} {quality}: {error.max()} {error.mean():.3f}')
    assert gpu.taken == 1
    assert error.max() <= most
    assert error.mean() <= mean


def test_grey_becomes_three_equal_channels(gpu):
    decoded = pixels_of(data := jpeg(real_picture()[:, :, 0]), gpu)
    assert gpu.taken == 1
    assert (decoded[..., :1] == decoded).all()
    assert np.abs(decoded - pixels_of(data)).max() <= WITHIN['4:4:4'][0]


def test_pixels_go_into_the_pinned_slots_of_the_ring(gpu):
    ring, picture = FrameRing(pinned_memory, mapped=True, slots=2), real_picture()
    data = jpeg(picture)
    frames = [decompress(frame_of(data), 'front', ring, gpu) for _ in range(2)]
    assert all(frame.device_address == frame.data.ctypes.data != 0 for frame in frames)
    assert ring.free_slot() is None
    beyond = decompress(frame_of(data), 'front', ring, gpu)
    assert beyond.device_address == 0
    for frame in [*frames, beyond]:
        assert (frame.encoding, frame.width, frame.height, frame.step) == ('rgb8', 640, 480, 1920)
        np.testing.assert_array_equal(frame.data, frames[0].data)
    assert gpu.taken == 3
    frames.clear()
    del frame
    grown = ring.grown
    for _ in range(10):
        decompress(frame_of(data), 'front', ring, gpu)
    assert ring.grown == grown


def test_the_size_may_change_from_frame_to_frame(gpu):
    ring, rng = FrameRing(pinned_memory, mapped=True), np.random.default_rng()
    for turn in range(10):
        height, width = (int(side) for side in rng.integers(16, 1300, 2))
        data = jpeg(natural_picture(height, width, turn), subsampling='4:4:4')
        error = np.abs(pixels_of(data, gpu, ring) - pixels_of(data))
        assert error.max() <= WITHIN['4:4:4'][0]
    assert gpu.left == 0


def test_a_picture_larger_than_the_ring_takes_is_decoded_elsewhere(gpu):
    ring = FrameRing(pinned_memory, mapped=True, limit=100_000)
    data = jpeg(real_picture())
    frame = decompress(frame_of(data), 'front', ring, gpu)
    assert (frame.device_address, frame.data.size, gpu.taken) == (0, 640 * 480 * 3, 1)


def test_a_picture_that_is_too_large_is_refused_before_memory_is_taken(gpu):
    data = bytearray(jpeg(real_picture()))
    begin = data.index(b'\xff\xc0')
    data[begin + 5 : begin + 9] = (60_000).to_bytes(2, 'big') * 2
    before = torch.cuda.memory_allocated()
    with pytest.raises(ObservationError, match='60000 x 60000 pixels are more than'):
        pixels_of(bytes(data), gpu)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize('options', [{'progressive': True}, {'keep_rgb': True}], ids=str)
def test_unusual_files_are_left_to_the_cpu(gpu, options):
    data = jpeg(real_picture(), **options)
    np.testing.assert_array_equal(pixels_of(data, gpu), pixels_of(data))
    assert (gpu.taken, gpu.left) == (0, 1)


def refused(data, gpu=None):
    try:
        pixels_of(data, gpu)
    except ObservationError:
        return True
    return False


LOSSES = {
    'the end marker': lambda d, m, n: d[:-2],
    'the second half': lambda d, m, n: d[:m],
}


@pytest.mark.parametrize('options', [{}, {'restart_marker_rows': 1}], ids=['plain', 'restarts'])
@pytest.mark.parametrize('loss', LOSSES)
def test_a_file_without_its_end_is_not_shown_from_the_gpu(gpu, loss, options):
    """That is all of damage that holds. nvJPEG shows files that were cut and kept their end marker, and such
    that lost a piece or had it zeroed inside, all of which libjpeg-turbo refuses (docs/cameras.md)."""
    rng, data = np.random.default_rng(), jpeg(real_picture(), **options)
    for _ in range(20):
        begin, length = int(rng.integers(2000, len(data) - 4000)), int(rng.integers(100, 2000))
        damaged = LOSSES[loss](data, begin, length)
        assert refused(damaged, gpu), (begin, length)
    whole = np.abs(pixels_of(data, gpu) - pixels_of(data))  # what came before leaves no trace
    assert whole.mean() <= WITHIN['4:2:0'][1]
    assert gpu.taken >= 1


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_never_harm_the_decoder(decoder, flips):
    """Whatever it made of them: it works on, and writes nowhere but into the picture that was announced."""
    data = bytearray(jpeg(natural_picture()))
    for position, value in flips:
        data[position % len(data)] = value
    refused(bytes(data), decoder)
    assert decoder.trouble == ''


def test_decoding_goes_on_beside_a_busy_stream(gpu):
    """It waits for no other work, as it would on the policy's own stream."""
    data = jpeg(real_picture())
    expected = pixels_of(data, gpu)
    busy, done = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(2_000_000_000)
        done.record()
    np.testing.assert_array_equal(pixels_of(data, gpu), expected)
    assert not done.query()
    done.synchronize()


ENDS = {
    'left to the end of the interpreter': '',
    'closed': 'library.close()',
    'collected as garbage in any order': 'library.me, state.me, library.state = library, state, state\n'
    'del library, state\nimport gc; gc.collect()',
}


@pytest.mark.parametrize('end', ENDS)
@pytest.mark.usefixtures('decoder')
def test_a_process_ends_well_however_the_library_goes(end):
    made = 'from flashrt_ros.ingest.gpu_jpeg import GpuJpeg\nfrom flashrt_ros.ingest.nvjpeg import NvJpeg\n'
    made += 'library = NvJpeg(); state = GpuJpeg(library)._state\n'
    done = subprocess.run([sys.executable, '-c', made + ENDS[end]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
