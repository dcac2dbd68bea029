"""Every kernel file says where it runs and compiles there; what cannot be compiled is refused with a
reason."""

import shutil

import pytest

from flashrt_ros.engine.cuda import compiler
from flashrt_ros.engine.cuda.compiler import architectures, compile_kernels, kernel_files
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.errors import BackendError

needs_nvcc = pytest.mark.skipif(shutil.which('nvcc') is None, reason='needs nvcc')
CLAIMS = [(file, architecture) for file in kernel_files() for architecture in architectures(file)]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of kernels with one small file."""
    folder = tmp_path / 'kernels'
    folder.mkdir()
    (folder / 'one.cuh').write_text('#define VALUE 1\n')
    (folder / 'small.cu').write_text(
        '// A test.\n// Architectures: 80 90a\n#include "one.cuh"\n'
        'extern "C" __global__ void k(int* x) { *x = VALUE; }\n'
    )
    monkeypatch.setattr(compiler, 'resource_folder', lambda name: tmp_path / name)
    return folder


@pytest.mark.parametrize('file', kernel_files())
def test_a_kernel_file_names_known_architectures(file):
    assert set(architectures(file)) <= {'80', '86', '89', '90a', '100', '110', '120'}


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize(('file', 'architecture'), CLAIMS)
def test_it_compiles_for_each_of_them(file, architecture):
    assert compile_kernels(file, architecture).stat().st_size > 1000


@needs_nvcc
def test_the_cache_follows_source_header_and_constants(sources, tmp_path):
    cache = tmp_path / 'cache'
    first = compile_kernels('small', '80', cache=cache)
    assert compile_kernels('small', '80', cache=cache) == first
    assert compile_kernels('small', '80', {'OTHER': 2}, cache) != first
    (sources / 'one.cuh').write_text('#define VALUE 2\n')
    assert compile_kernels('small', '80', cache=cache) != first


@needs_nvcc
def test_a_compiler_error_reaches_the_user(sources, tmp_path):
    (sources / 'small.cu').write_text('// A test.\n// Architectures: 80\nnonsense\n')
    with pytest.raises(BackendError, match=r'nvcc failed: .*small\.cu'):
        compile_kernels('small', '80', cache=tmp_path)
    assert not list(tmp_path.glob('kernels/*.cubin'))


def test_an_unclaimed_architecture_is_refused(sources, tmp_path):
    with pytest.raises(BackendError, match='written for sm_80, sm_90a, the GPU is sm_120'):
        compile_kernels('small', '120', cache=tmp_path)


def test_a_file_without_a_claim_is_refused(sources):
    (sources / 'small.cu').write_text('// A test.\nnothing\n')
    with pytest.raises(BackendError, match='Architectures'):
        architectures('small')


def test_without_nvcc_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda *_, **__: None)
    monkeypatch.setattr(compiler.importlib.util, 'find_spec', lambda _: None)
    compiler.find_nvcc.cache_clear()
    with pytest.raises(BackendError, match='pip install nvidia-cuda-nvcc'):
        compiler.find_nvcc()
    compiler.find_nvcc.cache_clear()


def test_without_a_gpu_the_reason_is_named(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(BackendError, match='finds no usable NVIDIA GPU'):
        find_gpu()
