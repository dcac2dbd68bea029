"""NVIDIA's wheels become the CUDA toolkit that pycuda's build looks for."""

import subprocess

import pytest

from .tool import load_tool

install_cuda = load_tool('install_cuda')


def wheels_in(folder):
    for name in ('bin/nvcc', 'include/cuda.h', 'nvvm/bin/cicc', 'lib/libcudart.so.13', 'lib/libcurand.so.10'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_libraries_get_the_names_that_a_linker_looks_for(tmp_path):
    wheels, toolkit, driver = wheels_in(tmp_path / 'cu13'), tmp_path / 'cuda', tmp_path / 'libcuda.so.1'
    driver.touch()
    install_cuda.assemble_toolkit(wheels, toolkit, driver)
    install_cuda.assemble_toolkit(wheels, toolkit, driver)  # again, as a second make does
    assert (toolkit / 'lib64/libcurand.so').resolve() == wheels / 'lib/libcurand.so.10'
    assert (toolkit / 'lib64/libcuda.so').resolve() == driver
    assert (toolkit / 'bin/nvcc').is_file()
    assert (toolkit / 'include/cuda.h').is_file()


def test_a_gpu_without_its_driver_library_is_refused_with_a_hint(monkeypatch):
    cache = subprocess.CompletedProcess([], 0, stdout='\tlibc.so.6 (libc6,x86-64) => /lib/libc.so.6\n')
    monkeypatch.setattr(install_cuda.subprocess, 'run', lambda *_, **__: cache)
    with pytest.raises(SystemExit, match=r'no libcuda\.so\.1 .*--gpus all'):
        install_cuda.driver_library()


def test_the_driver_is_found_in_the_linkers_cache(monkeypatch):
    line = '\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1\n'
    cache = subprocess.CompletedProcess([], 0, stdout=line)
    monkeypatch.setattr(install_cuda.subprocess, 'run', lambda *_, **__: cache)
    assert str(install_cuda.driver_library()) == '/usr/lib/x86_64-linux-gnu/libcuda.so.1'
