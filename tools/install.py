#!/usr/bin/env python3
"""Install what this machine needs into the environment of the interpreter that runs this.

    .venv/bin/python tools/install.py kilted     # the argument is the ROS 2 distribution

Takes every release from the constraints files, and pip's own configuration as it is (indexes, proxies,
folders of wheels). What the CUDA engine needs besides, `tools/install_cuda.py` installs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

UNWANTED_CUDA = """
There is no NVIDIA GPU here, but pip will take the CUDA build of torch (some GB more to download), because
on Linux that is what its default index offers. To take the CPU build, stop this (Ctrl-C), give pip the CPU
index that PyTorch's "Get Started" page names, and repeat: docs/installation.md, "Without a GPU".
"""
UNUSED_GPU = """
There is an NVIDIA GPU, but pip's configuration leads to the CPU build of torch: policies will run on the CPU.
To use the GPU, take the CPU index or folder of wheels out of pip's configuration (pip config list).
"""
ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check']


def main() -> int:
    distribution = sys.argv[1]
    gpu = has_nvidia_gpu()
    files = ['requirements.txt', 'requirements-dev.txt', f'requirements-{distribution}.txt']
    constraints = ['constraints.txt', f'constraints-{distribution}.txt']
    pip_install('pip', constraints=constraints)
    announce_torch(gpu, constraints)
    pip_install(
        *(argument for file in files for argument in ('-r', str(ROOT / file))), constraints=constraints
    )
    subprocess.run([sys.executable, str(ROOT / 'tools/relocate_ros_wheels.py')], check=True)
    subprocess.run([sys.executable, str(ROOT / 'tools/describe_environment.py')], check=True)
    return 0


def has_nvidia_gpu() -> bool:
    """Whether NVIDIA's driver lists a GPU."""
    tool = shutil.which('nvidia-smi')
    return tool is not None and subprocess.run([tool, '-L'], capture_output=True).returncode == 0


def pip_install(*arguments: str, constraints: list[str]) -> None:
    command = [*PIP, 'install', *arguments]
    for file in constraints:
        command += ['-c', str(ROOT / file)]
    if subprocess.run(command).returncode != 0:
        raise SystemExit(
            'pip failed: see its message above. After a network fault, the same make command goes on.'
        )


def announce_torch(gpu: bool, constraints: list[str]) -> None:
    """Say beforehand which build of torch pip will take, because the difference is gigabytes."""
    cuda = torch_brings_cuda(constraints)
    if cuda and not gpu:
        print(UNWANTED_CUDA, flush=True)
    elif gpu and not cuda:
        print(UNUSED_GPU, flush=True)


def torch_brings_cuda(constraints: list[str]) -> bool:
    """Whether installing torch now would leave NVIDIA's CUDA libraries in the environment."""
    with tempfile.NamedTemporaryFile(suffix='.json') as report:
        command = [
            *PIP,
            'install',
            '--quiet',
            '--dry-run',
            '--ignore-installed',
            '--report',
            report.name,
            'torch',
        ]
        for file in constraints:
            command += ['-c', str(ROOT / file)]
        if subprocess.run(command).returncode != 0:
            raise SystemExit('pip cannot resolve torch: see its message above.')
        names = [package['metadata']['name'] for package in json.load(report)['install']]
    return any(name.startswith('nvidia-') for name in names)


if __name__ == '__main__':
    raise SystemExit(main())
