"""What the host tells preprocess.cu about frames; without a GPU."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures.scenes import random_frame

from flashrt_ros.engine import frame_inputs
from flashrt_ros.errors import ObservationError
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.pictures import CameraImage, Framing
from flashrt_ros.pictures.resampling import taps

LIBRARY = SimpleNamespace(
    gpu=SimpleNamespace(device=torch.device('cpu')), kernel=lambda *_, **__: lambda *_, **__: None
)


@pytest.fixture
def inputs(monkeypatch):
    monkeypatch.setattr(frame_inputs, 'pinned_zeros', lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    return frame_inputs.FrameInputs(LIBRARY, NANO_PI05.vision, 'pil', 2)


def told(inputs, slot=0):
    """The geometry as the device gets it."""
    inputs.launch(0, 2, torch.empty(0))
    return inputs._geometry.device.numpy().view(frame_inputs.GEOMETRY)[slot, 0]


def place(inputs, slot=0):
    """Where the frame lies, and where the device has it."""
    return tuple(inputs._places[slot].tolist())


def table(inputs, axis, slot=0):
    return inputs._tables.device[slot, axis].numpy()


def test_sizes_and_layout_are_those_of_the_kernel(inputs):
    frame = random_frame('bayer_grbg16', 640, 480, 6, big_endian=True)
    inputs.write({'front': CameraImage(frame, Framing(90, crop=(40, 0, 400, 480)))})
    found = told(inputs)
    assert (found['step'], *found['size'], found['layout']) == (1286, 640, 480, 3)
    assert (found['samples'], found['wide'], *found['places']) == (1, 2, 1, 0, 0)
    assert (*found['first'], *found['along'], *found['down']) == (40, 479, 0, -1, 1, 0)
    assert (*found['fitted'], *found['border']) == (224, 186, 0, 19)
    assert found['bytes'] == frame.data.size


def test_a_frame_that_the_gpu_reaches_is_left_where_it_is(inputs):
    frame = random_frame('rgb8', 20, 10)
    for address in (4096, 4096 + 7):
        inputs.write({'front': CameraImage(replace(frame, device_address=address))})
        source, data = place(inputs)
        assert (source, data % 16) == (address, address % 16)


def test_another_is_staged(inputs):
    frames = {view: CameraImage(random_frame('rgb8', 20, 10, seed=i)) for i, view in enumerate('ab')}
    inputs.write(frames)
    for slot, image in enumerate(frames.values()):
        staged = inputs._pinned[slot]
        assert place(inputs, slot)[0] == staged.data_ptr()
        np.testing.assert_array_equal(staged.numpy()[:600], image.frame.data)


def test_weights_follow_the_resolution(inputs):
    for width, height, fitted in ((640, 480, (224, 168)), (1280, 720, (224, 126)), (640, 480, (224, 168))):
        inputs.write({'front': CameraImage(random_frame('mono8', width, height))})
        for axis, length in enumerate((width, height)):
            expected = taps(length, fitted[axis], 'pil')
            found = table(inputs, axis)[: fitted[axis]]
            np.testing.assert_array_equal(found[:, 0], expected.first)
            np.testing.assert_array_equal(found[:, 1], expected.count)
            np.testing.assert_array_equal(found[:, 2 : 2 + expected.weights.shape[1]], expected.weights)


def test_after_a_refused_frame_the_next_one_is_fine(inputs):
    with pytest.raises(ObservationError, match='front: a picture of 5000 x 100 pixels is too large'):
        inputs.write({'front': CameraImage(random_frame('mono8', 5000, 100))})
    test_weights_follow_the_resolution(inputs)
