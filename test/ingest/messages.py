"""Message look-alikes with the fields that ingest reads, so that its tests need no ROS."""

import array
import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

SECOND = 1_000_000_000


def header(stamp_ns=0):
    stamp = SimpleNamespace(sec=stamp_ns // SECOND, nanosec=stamp_ns % SECOND)
    return SimpleNamespace(stamp=stamp, frame_id='camera')


def image(pixels, encoding='rgb8', padding=0, stamp_ns=0):
    """pixels: uint8 [height, width, channels] in the encoding's own order."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, pixels[0].size if height else 0)
    padded = np.concatenate([rows, np.full((height, padding), 77, np.uint8)], axis=1)
    return SimpleNamespace(
        header=header(stamp_ns),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=padded.shape[1],
        data=array.array('B', padded.tobytes()),
    )


def compressed(pixels, kind='JPEG', stamp_ns=0, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return compressed_bytes(buffer.getvalue(), stamp_ns)


def compressed_bytes(data, stamp_ns=0):
    return SimpleNamespace(header=header(stamp_ns), format='free text', data=array.array('B', data))


def joint_state(names, positions, stamp_ns=0):
    return SimpleNamespace(header=header(stamp_ns), name=list(names), position=array.array('d', positions))


def smooth_picture(height=48, width=64):
    """A picture that JPEG keeps within a few steps of grey."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 3, columns * 2, rows + columns], axis=-1).astype(np.uint8)
