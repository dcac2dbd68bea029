"""From `kernels/*.cu` to cubins: one per file, GPU architecture and set of constants, cached by content.

A kernel file is device code only. Its second line says where it runs, for example
`// Architectures: 80 86 89 90a 100 110 120`, and its sizes may be constants given on nvcc's command line.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flashrt_ros.errors import BackendError
from flashrt_ros.resources import resource_folder

OPTIONS = ('-O3', '-std=c++17', '--use_fast_math', '--expt-relaxed-constexpr', '-lineinfo')


def cache_directory() -> Path:
    """The user's cache for compiled kernels and packed weights (XDG base directory specification)."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'flashrt_ros'


def kernel_files() -> list[str]:
    """The stems of all kernel files."""
    return sorted(path.stem for path in resource_folder('kernels').glob('*.cu'))


def architectures(file: str) -> tuple[str, ...]:
    """The architectures that a kernel file claims, as nvcc names them ('80', '90a', ...)."""
    lines = (resource_folder('kernels') / f'{file}.cu').read_text().splitlines()
    match = re.fullmatch(r'// Architectures:((?: \d+[af]?)+)', lines[1])
    if match is None:
        raise BackendError("line 2 is not '// Architectures: ...'", f'kernels/{file}.cu', 'write one')
    return tuple(match[1].split())


def compile_kernels(
    file: str, architecture: str, constants: Mapping[str, int] | None = None, cache: Path | None = None
) -> Path:
    """Compile kernels/<file>.cu unless the cache has it; returns the cubin's path.

    constants: preprocessor names and values. Raises BackendError for an unclaimed architecture, a missing
    nvcc or a compiler error, whose text it carries.
    """
    claimed = architectures(file)
    if architecture not in claimed:
        raise BackendError(
            f'it is written for sm_{", sm_".join(claimed)}, the GPU is sm_{architecture}',
            f'kernels/{file}.cu',
            "choose another GPU or device 'cpu'",
        )
    cubin = cubin_path(file, architecture, constants, cache)
    if not cubin.exists():
        cubin.parent.mkdir(parents=True, exist_ok=True)
        _run_nvcc(file, architecture, _defines(constants), cubin)
    return cubin


def cubin_path(
    file: str, architecture: str, constants: Mapping[str, int] | None = None, cache: Path | None = None
) -> Path:
    """Where `compile_kernels` keeps what it makes, whether it is there or not."""
    key = _content_key(file, architecture, _defines(constants))
    return (cache or cache_directory()) / 'kernels' / f'{file}-sm_{architecture}-{key}.cubin'


def _defines(constants: Mapping[str, int] | None) -> list[str]:
    return [f'-D{name}={value}' for name, value in sorted((constants or {}).items())]


@functools.cache
def find_nvcc() -> Path:
    """nvcc from the PATH, the usual installation folder, or its PyPI wheel (nvidia-cuda-nvcc)."""
    found = shutil.which('nvcc') or shutil.which('nvcc', path='/usr/local/cuda/bin')
    if found:
        return Path(found)
    spec = importlib.util.find_spec('nvidia')
    for root in (spec.submodule_search_locations or []) if spec else []:
        for candidate in sorted(Path(root).glob('*/bin/nvcc')):
            return candidate
    raise BackendError(
        'there is no nvcc on the PATH, in /usr/local/cuda or in the Python environment',
        'CUDA compiler',
        'install the CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl',
    )


@functools.cache
def _compiler_version() -> str:
    return subprocess.run([find_nvcc(), '--version'], capture_output=True, text=True, check=True).stdout


def _content_key(file: str, architecture: str, defines: list[str]) -> str:
    """Hash of everything that decides the machine code."""
    digest = hashlib.sha256()
    for path in _with_headers(resource_folder('kernels') / f'{file}.cu'):
        digest.update(path.read_bytes())
    for text in (architecture, *defines, *OPTIONS, _compiler_version()):
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def _with_headers(source: Path) -> list[Path]:
    """A source and the headers of ours that it includes, directly or not."""
    found = [source]
    for path in found:
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            header = resource_folder('kernels') / name
            if header not in found:
                found.append(header)
    return found


def _run_nvcc(file: str, architecture: str, defines: list[str], cubin: Path) -> None:
    """Compile to a temporary file and rename it, so that two processes may compile the same kernel."""
    source = resource_folder('kernels') / f'{file}.cu'
    target = f'-gencode=arch=compute_{architecture},code=sm_{architecture}'
    with tempfile.TemporaryDirectory(dir=cubin.parent) as folder:
        output = Path(folder) / cubin.name
        command = [str(find_nvcc()), '-cubin', target, *OPTIONS, *defines, '-o', str(output), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BackendError(
                f'nvcc failed: {result.stderr.strip()}', str(source), 'check the CUDA toolkit installation'
            )
        output.replace(cubin)
