"""Who decodes JPEGs, and what is said about it, where there is no GPU."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from flashrt_ros.configuration import load_config, with_values
from flashrt_ros.doctor import Level
from flashrt_ros.doctor.machine import decoding_finding
from flashrt_ros.errors import BackendError, ConfigError
from flashrt_ros.ingest import Ingest, decoding
from flashrt_ros.ingest.compressed import decompress
from flashrt_ros.ingest.decoding import decoding_of
from flashrt_ros.ingest.typed import compressed_frame
from ingest.messages import compressed, smooth_picture

CONFIG = load_config(Path(__file__).parents[2] / 'config' / 'so101.yaml')


def config(**values):
    return with_values(CONFIG, {key.replace('_', '.', 1): value for key, value in values.items()}, 'test')


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)


def test_the_gpu_cannot_decode_for_a_policy_on_the_cpu():
    with pytest.raises(
        ConfigError, match=r"ingest\.decode: 'gpu' decodes for a policy on the GPU.*Choose 'cpu'"
    ):
        config(ingest_decode='gpu')


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_the_cpu_decodes_where_nothing_else_is_asked_for(device):
    chosen = decoding_of(config(policy_device=device))
    assert chosen.on_gpu == {}
    assert chosen.text.endswith(' on the CPU')
    finding = decoding_finding(config(policy_device=device))
    assert (finding.level, finding.found) == (Level.OK, chosen.text)


@pytest.mark.usefixtures('no_gpu')
def test_a_gpu_that_was_asked_for_is_missed():
    wanted = config(ingest_decode='gpu', policy_device='cuda')
    with pytest.raises(BackendError, match=r"finds no usable NVIDIA GPU\. Choose 'cpu'"):
        Ingest(wanted)
    finding = decoding_finding(wanted)
    assert (finding.level, finding.fix) == (Level.FAIL, "choose 'cpu'")


def test_cameras_that_send_no_jpeg_need_no_decoder():
    raw = {f'cameras.{view}.transport': 'raw' for view in CONFIG.cameras}
    assert decoding_of(with_values(CONFIG, raw, 'test')).text == 'no camera is compressed'


def test_a_machine_without_the_library_says_how_to_get_it(monkeypatch):
    nvjpeg = pytest.importorskip('flashrt_ros.ingest.nvjpeg')
    monkeypatch.setattr(nvjpeg, '_path', lambda: 'libnvjpeg.so.0')
    nvjpeg._load.cache_clear()
    with pytest.raises(
        BackendError, match=r'no usable nvJPEG .*libnvjpeg\.so\.0.* Pip install nvidia-nvjpeg'
    ):
        nvjpeg.NvJpeg()


def test_a_library_of_another_kind_is_no_nvjpeg(monkeypatch):
    nvjpeg = pytest.importorskip('flashrt_ros.ingest.nvjpeg')
    monkeypatch.setattr(nvjpeg, '_path', lambda: ctypes.CDLL(None)._name)
    nvjpeg._load.cache_clear()
    with pytest.raises(BackendError, match='there is no usable nvJPEG'):
        nvjpeg.NvJpeg()


class Failing:
    """A decoder on the GPU that has given up."""

    trouble = 'nvjpegDecode: execution failed'

    def __call__(self, data, pixels):
        return False


def test_what_a_decoder_on_the_gpu_leaves_is_decoded_on_the_cpu():
    frame = compressed_frame(compressed(smooth_picture(), 'JPEG'))
    on_cpu, left = decompress(frame, 'front'), decompress(frame, 'front', gpu=Failing())
    np.testing.assert_array_equal(on_cpu.data, left.data)


def test_a_gpu_that_fails_later_is_told():
    chosen = decoding.Decoding('nvJPEG on the GPU', {'front': Failing()})
    assert 'on the CPU, because the GPU failed (nvjpegDecode: execution failed)' in chosen.text
