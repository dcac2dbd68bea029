"""preprocess.cu against the CPU's decoding, framing and resizing: fresh random frames, poisoned outputs."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from pictures.scenes import natural_picture, random_frame

from flashrt_ros.errors import ObservationError
from flashrt_ros.frame import Frame
from flashrt_ros.models.image import resize_with_pad
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.pictures import ENCODINGS, CameraImage, Framing
from flashrt_ros.pictures.framing import FLIPS, TURNS

pytestmark = pytest.mark.gpu
SPEC = NANO_PI05.vision
SQUARE = SPEC.image_size


@pytest.fixture(scope='module', params=['pil', 'torch'])
def convention(request):
    return request.param


@pytest.fixture(scope='module')
def inputs(library, convention):
    from flashrt_ros.engine.frame_inputs import FrameInputs

    return FrameInputs(library, SPEC, convention, views=3)


def expected_patches(images, convention):
    """fp32 [views * tokens, 3 * patch^2] with values of 2 * byte - 255."""
    squares = [resize_with_pad(image.array('v'), SQUARE, convention) for image in images]
    return F.unfold(255 * torch.stack(squares), SPEC.patch, stride=SPEC.patch).transpose(1, 2).flatten(0, 1)


def found_patches(inputs, images):
    columns = inputs.sizes.columns
    out = torch.full((len(images) * SPEC.tokens, columns), float('nan'), dtype=torch.bfloat16, device='cuda')
    inputs.write({f'view {i}': image for i, image in enumerate(images)})
    inputs.launch(0, len(images), out)
    return out.cpu().float()


def assert_same(inputs, images, convention):
    found, expected = found_patches(inputs, images), expected_patches(images, convention)
    real = 3 * SPEC.patch**2
    assert (found[:, real:] == 0).all()
    difference = (found[:, :real] - expected).abs()
    assert torch.isfinite(found).all()
    # pil: the same integers. torch: bf16 holds 8 bits of values up to 255, so half a step of 8 bits at most.
    assert difference.max() <= (0.01 if convention == 'pil' else 1.01)


def mapped(frame):
    """The same frame in memory that the GPU reads, at an odd address, and what keeps that alive."""
    pinned = torch.empty(frame.data.size + 3, dtype=torch.uint8, pin_memory=True)
    data = pinned.numpy()[3:]
    data[:] = frame.data
    return Frame(
        data, frame.encoding, frame.width, frame.height, frame.step, frame.is_bigendian,
        device_address=pinned.data_ptr() + 3,
    )  # fmt: skip


@pytest.mark.parametrize('name', ENCODINGS)
@pytest.mark.parametrize('big_endian', [False, True])
def test_every_encoding(inputs, convention, name, big_endian):
    """Noise, in which every pixel that is read from the wrong place shows; then a picture with soft edges."""
    if big_endian and ENCODINGS[name].size == 1:
        pytest.skip('bytes have no order')
    sizes, seed = ((64, 48), (334, 250), (640, 480)), torch.seed() % 2**31
    frames = [
        random_frame(name, width, height, padding, big_endian, seed + i)
        for i, (padding, (width, height)) in enumerate(zip((0, 7, 64), sizes, strict=True))
    ]
    assert_same(inputs, [CameraImage(mapped(frame)) for frame in frames], convention)


@pytest.mark.parametrize(
    ('width', 'height'),
    [(1, 1), (224, 224), (224, 30), (37, 53), (225, 223), (1280, 720), (720, 1280), (1923, 1083),
     (3840, 2160), (4096, 100), (2160, 4096), (100, 75)],
)  # fmt: skip
def test_every_size(inputs, convention, width, height):
    frame = random_frame('bgr8', width, height, padding=5, seed=torch.seed() % 2**31)
    assert_same(inputs, [CameraImage(frame)], convention)


@pytest.mark.parametrize('name', ['rgb8', 'yuyv', 'nv12', 'bayer_gbrg16'])
@pytest.mark.parametrize(('rotate', 'flip'), list(itertools.product(TURNS, FLIPS)))
def test_cameras_mounted_in_every_way(inputs, convention, name, rotate, flip):
    seed = torch.seed() % 2**31
    images = [
        CameraImage(random_frame(name, 640, 480, seed=seed), Framing(rotate, flip)),
        CameraImage(random_frame(name, 1280, 720, 6, seed=seed), Framing(rotate, flip, (13, 7, 301, 555))),
        CameraImage(random_frame(name, 1920, 1080, seed=seed), Framing(rotate, flip)),
    ]
    assert_same(inputs, images, convention)


def test_pictures_of_the_world(inputs, convention):
    images = [CameraImage.of(natural_picture(480, 640, seed)) for seed in range(3)]
    assert_same(inputs, images, convention)


def test_frames_that_the_gpu_cannot_reach_are_staged(inputs, convention):
    frames = [random_frame('rgb8', 641, 479, 2), mapped(random_frame('mono8', 5, 5))]
    frames.append(random_frame('nv12', 320, 240))
    assert_same(inputs, [CameraImage(frame) for frame in frames], convention)


def test_a_captured_graph_follows_resolution_encoding_and_address(inputs, convention):
    out = torch.full((2 * SPEC.tokens, inputs.sizes.columns), float('nan'), device='cuda').bfloat16()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            inputs.launch(0, 2, out)
        for name, width, height, framing in (
            ('rgb8', 640, 480, Framing()),
            ('bayer_rggb8', 1280, 720, Framing(180)),
            ('yuyv', 320, 240, Framing(90, crop=(0, 0, 100, 100))),
            ('rgb8', 640, 480, Framing()),
        ):
            frames = [random_frame(name, width, height, seed=torch.seed() % 2**31) for _ in range(2)]
            images = [CameraImage(mapped(frame), framing) for frame in frames]
            out.fill_(float('nan'))
            inputs.write({'a': images[0], 'b': images[1]})
            graph.replay()
            stream.synchronize()
            found = out.cpu().float()[:, : 3 * SPEC.patch**2]
            difference = (found - expected_patches(images, convention)).abs().max()
            assert difference <= (0.01 if convention == 'pil' else 1.01), name


@pytest.mark.parametrize(('width', 'height'), [(4098, 100), (4096, 54)])
def test_what_has_no_room_is_refused_by_name(inputs, convention, width, height):
    if convention == 'torch' and width <= 4096:
        pytest.skip('two weights always have room')
    with pytest.raises(ObservationError, match=f'wrist: a picture of {width} x {height} pixels is too'):
        inputs.write({'wrist': CameraImage(random_frame('rgb8', width, height))})
