"""What the bytes of a frame mean: encodings, how the camera is mounted, and both in numpy.

Shared by whoever takes frames (`ingest`) and whoever computes with pixels (`models`, `engine`). The CUDA
engine does the same in one kernel (`kernels/preprocess.cu`); what is here is its specification.
"""

from flashrt_ros.pictures.camera_image import CameraImage, picture_array
from flashrt_ros.pictures.decode import decode_image
from flashrt_ros.pictures.encodings import ENCODINGS, Encoding, check_frame
from flashrt_ros.pictures.framing import Framing

__all__ = [
    'ENCODINGS',
    'CameraImage',
    'Encoding',
    'Framing',
    'check_frame',
    'decode_image',
    'picture_array',
]
