"""Pictures to see with, and frames of every encoding made from them."""

import io

import numpy as np
from PIL import Image

from flashrt_ros.frame import Frame
from flashrt_ros.pictures import ENCODINGS
from flashrt_ros.resources import resource_folder


def natural_picture(height=96, width=128, seed=0):
    """uint8 [height, width, 3]: noise whose power falls with the frequency, as in pictures of the world."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None, None], np.fft.fftfreq(width)[None, :, None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    phase = np.exp(2j * np.pi * rng.random((height, width, 3)))
    waves = np.fft.ifft2(amplitude * phase, axes=(0, 1)).real
    spread = waves.std(axis=(0, 1))
    return np.clip(128 + 70 * waves / spread, 0, 255).astype(np.uint8)


def demo_frames(count=2):
    """Camera frames of the demo's recorded episode."""
    from flashrt_ros.evaluation.bag import open_bag  # needs what reads bags, which a GPU machine may lack

    frames = []
    with open_bag(resource_folder('kernels').parent / 'demo' / 'episode') as bag:
        topics = [topic for topic, kind in bag.topics.items() if kind.type.endswith('CompressedImage')]
        for record in bag.records(topics):
            message = bag.decode(record)
            frames.append(np.asarray(Image.open(io.BytesIO(bytes(message.data))).convert('RGB')))
            if len(frames) == count:
                return frames
    raise AssertionError('the episode has too few frames')


def random_frame(name, width, height, padding=0, big_endian=False, seed=0):
    """A frame of random bytes, rows `padding` bytes longer than they have to be."""
    encoding = ENCODINGS[name]
    step = encoding.row_bytes(width) + padding
    data = np.random.default_rng(seed).integers(0, 256, step * encoding.rows(height), dtype=np.uint8)
    return Frame(data, name, width, height, step, big_endian)
