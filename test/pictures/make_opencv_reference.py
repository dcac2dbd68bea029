"""Writes opencv.npz: frames of random bytes and what OpenCV makes of them.

    pip install opencv-python-headless; python test/pictures/make_opencv_reference.py

The calls are those of cv_bridge (toCvCopy to rgb8): colour first, in the depth of the frame, then depth.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

from flashrt_ros.pictures import ENCODINGS  # noqa: E402
from pictures.scenes import random_frame  # noqa: E402

WIDTH, HEIGHT = 38, 26

CODES = {
    'bgr': cv2.COLOR_BGR2RGB,
    'rgba': cv2.COLOR_RGBA2RGB,
    'bgra': cv2.COLOR_BGRA2RGB,
    'mono': cv2.COLOR_GRAY2RGB,
    'uyvy': cv2.COLOR_YUV2RGB_UYVY,
    'yuv422': cv2.COLOR_YUV2RGB_UYVY,
    'yuyv': cv2.COLOR_YUV2RGB_YUY2,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
    'nv12': cv2.COLOR_YUV2RGB_NV12,
    'nv21': cv2.COLOR_YUV2RGB_NV21,
    'bayer_rggb': cv2.COLOR_BayerRGGB2RGB,
    'bayer_bggr': cv2.COLOR_BayerBGGR2RGB,
    'bayer_gbrg': cv2.COLOR_BayerGBRG2RGB,
    'bayer_grbg': cv2.COLOR_BayerGRBG2RGB,
}


def convert(name, frame):
    wide = name.endswith('16')
    samples = 2 if name.startswith(('uyvy', 'yuyv', 'yuv422')) else ENCODINGS[name].samples
    rows = ENCODINGS[name].rows(HEIGHT)
    pixels = frame.data.view(np.uint16 if wide else np.uint8).reshape(rows, WIDTH, samples)
    code = CODES.get(name if name in CODES else name.rstrip('0123456789'))
    pixels = pixels if code is None else cv2.cvtColor(pixels, code)
    return np.rint(pixels * (255 / 65535)).astype(np.uint8) if wide else pixels


if __name__ == '__main__':
    expected = {}
    for number, name in enumerate(ENCODINGS):
        expected[name] = convert(name, random_frame(name, WIDTH, HEIGHT, seed=number))
    np.savez_compressed(Path(__file__).with_name('opencv.npz'), **expected)
    print(cv2.__version__, 'converted', ', '.join(expected))
