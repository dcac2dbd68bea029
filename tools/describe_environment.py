#!/usr/bin/env python3
"""Say in a few lines what this environment holds: Python, torch and its build, ROS 2, GPU."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata


def main() -> int:
    print(f'Python {platform.python_version()} in {sys.prefix}')
    print(f'torch {metadata.version("torch")} ({torch_build()})')
    print(f'ROS 2 {ros_distribution()}, rclpy {metadata.version("ros-rclpy")}')
    print(f'GPU: {gpus()}')
    return 0


def torch_build() -> str:
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    return 'CUDA build' if any(name.startswith('nvidia-cudnn') for name in installed) else 'CPU build'


def ros_distribution() -> str:
    """From the metapackages, which carry the distribution in their names."""
    for distribution in ('kilted', 'jazzy'):
        try:
            metadata.version(f'ros-{distribution}-rclpy')
        except metadata.PackageNotFoundError:
            continue
        return distribution.capitalize()
    return 'not installed'


def gpus() -> str:
    tool = shutil.which('nvidia-smi')
    if tool is None:
        return 'none, policies run on the CPU'
    query = [tool, '--query-gpu=name', '--format=csv,noheader']
    return ', '.join(subprocess.run(query, capture_output=True, text=True).stdout.split('\n')).strip(', ')


if __name__ == '__main__':
    raise SystemExit(main())
