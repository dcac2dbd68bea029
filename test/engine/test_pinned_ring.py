"""Frames in the slots of a pinned ring, read by the GPU where they lie, while the ring goes round."""

import numpy as np
import pytest
import torch
from pictures.scenes import natural_picture

from flashrt_ros.ingest.cdr import Layout
from flashrt_ros.ingest.ring import SLOTS, FrameRing, pinned_memory
from flashrt_ros.models.spec import NANO_PI05
from flashrt_ros.pictures import CameraImage

pytestmark = pytest.mark.gpu
SPEC = NANO_PI05.vision
OFFSET = 68


def write(ring, pixels, sequence):
    """A frame as the middleware would leave it: other bytes before the pixels."""
    slot, size = ring.free_slot(), pixels.size
    assert slot is not None
    assert ring.make_room(slot, OFFSET + size)
    slot.bytes(OFFSET + size)[OFFSET:] = pixels.reshape(-1)
    height, width, _ = pixels.shape
    return ring.frame(slot, Layout(OFFSET, size, 1, 'camera', 'rgb8', width, height, 3 * width), 2, sequence)


def patches(inputs, frame):
    out = torch.full((SPEC.tokens, inputs.sizes.columns), float('nan'), dtype=torch.bfloat16, device='cuda')
    inputs.write({'front': CameraImage(frame)})
    inputs.launch(0, 1, out)
    return out.cpu()


def test_the_gpu_reads_what_was_written_into_the_slot(library):
    from flashrt_ros.engine.frame_inputs import FrameInputs

    inputs = FrameInputs(library, SPEC, 'pil', views=1)
    ring, rng = FrameRing(pinned_memory, mapped=True), np.random.default_rng()
    for sequence in range(3 * SLOTS):
        picture = natural_picture(*rng.integers(200, 500, 2), seed=sequence)
        frame = write(ring, picture, sequence)
        assert frame.device_address == frame.data.ctypes.data
        plain = CameraImage.of(picture).frame
        assert plain.device_address == 0
        torch.testing.assert_close(patches(inputs, frame), patches(inputs, plain), rtol=0, atol=0)


def test_pinned_slots_are_taken_once_and_then_used_over_and_over(library):
    ring, rng = FrameRing(pinned_memory, mapped=True), np.random.default_rng()
    picture = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    addresses = {write(ring, picture, sequence).device_address for sequence in range(50)}
    assert len(addresses) <= 2  # the first frame lies elsewhere in its slot
    assert ring.grown == 1
