#!/usr/bin/env python3
"""Install what the CUDA engine needs on a machine with an NVIDIA GPU.

pycuda comes as source and looks for a CUDA toolkit. NVIDIA's wheels hold all of one, but their libraries
carry only versioned names (libcurand.so.10), which a linker does not look for: PREFIX/cuda links them into
the form of a toolkit.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    wheels = Path(sysconfig.get_path('purelib'), 'nvidia', 'cu13')
    toolkit = Path(sys.prefix, 'cuda')
    requirements = (ROOT / 'requirements-cuda.txt').read_text().splitlines()
    pip_install([line for line in requirements if not line.startswith(('#', 'pycuda'))], dict(os.environ))
    assemble_toolkit(wheels, toolkit, driver_library())
    print('Compiling pycuda (about two minutes)', flush=True)
    pip_install(['pycuda'], compiling_environment(wheels, toolkit))
    return 0


def pip_install(requirements: list[str], environment: dict[str, str]) -> None:
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
        file.write('\n'.join(requirements))
        file.flush()
        command = [
            sys.executable,
            '-m',
            'pip',
            'install',
            '-r',
            file.name,
            '-c',
            str(ROOT / 'constraints.txt'),
        ]
        if subprocess.run(command, env=environment).returncode != 0:
            raise SystemExit("pip could not install the CUDA engine's packages: see its message above.")


def driver_library() -> Path:
    """libcuda of the installed driver, from the dynamic linker's cache."""
    cache = subprocess.run(['/sbin/ldconfig', '-p'], capture_output=True, text=True, check=True).stdout
    match = re.search(r'libcuda\.so\.1 \(.*x86-64.*\) => (\S+)', cache)
    if match is None:
        raise SystemExit(
            'There is an NVIDIA GPU, but no libcuda.so.1 (in a container: start it with --gpus all).'
        )
    return Path(match[1])


def assemble_toolkit(wheels: Path, toolkit: Path, driver: Path) -> None:
    """Links in the form of a toolkit: bin, include and nvvm of the wheels, lib64 with unversioned names."""
    libraries = toolkit / 'lib64'
    libraries.mkdir(parents=True, exist_ok=True)
    for folder in ('bin', 'include', 'nvvm'):
        link(toolkit / folder, wheels / folder)
    for library in sorted((wheels / 'lib').glob('lib*.so.*')):
        link(libraries / f'{library.name.partition(".so")[0]}.so', library)
    link(libraries / 'libcuda.so', driver)


def link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def compiling_environment(wheels: Path, toolkit: Path) -> dict[str, str]:
    """pycuda finds the toolkit by the nvcc on the PATH; the run path is where its libcurand stays."""
    return {
        **os.environ,
        'PATH': f'{toolkit}/bin:{os.environ["PATH"]}',
        'LDFLAGS': f'-Wl,-rpath,{wheels}/lib',
    }


if __name__ == '__main__':
    raise SystemExit(main())
