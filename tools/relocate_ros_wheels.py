#!/usr/bin/env python3
"""Make the CMake files of the ROS 2 wheels point at this environment: tools/relocate_ros_wheels.py [PREFIX].

The wheels were built in /opt/python/cp3XX-cp3XX, and their CMake exports name the Python and numpy headers of
that folder. A package with messages compiles against those exports. Doing it twice changes nothing.
PREFIX: sys.prefix if not given.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

BUILD_PREFIX = r'/opt/python/cp3\d+-cp3\d+'


def main() -> int:
    import numpy

    prefix = Path(sys.argv[1] if len(sys.argv) > 1 else sys.prefix)
    changed = relocate(prefix, sysconfig.get_path('include'), numpy.get_include())
    print(f'ROS 2 wheels: {changed} CMake files in {prefix} now name this Python and numpy')
    return 0


def relocate(prefix: Path, python_include: str, numpy_include: str) -> int:
    """Rewrite the files below prefix/share and prefix/lib/cmake; returns how many changed.

    Raises SystemExit if a path of the build machine is left that no rule covers.
    """
    files = [path for folder in ('share', 'lib/cmake') for path in (prefix / folder).rglob('*.cmake')]
    changed = 0
    for path in files:
        before = path.read_text()
        after = relocated(before, python_include, numpy_include)
        if after != before:
            path.write_text(after)
            changed += 1
        if left := re.search(BUILD_PREFIX + r'[^;"\s)]*', after):
            raise SystemExit(
                f'{path}: no rule to replace {left[0]}. The ROS 2 wheels are of an unknown release.'
            )
    return changed


def relocated(text: str, python_include: str, numpy_include: str) -> str:
    """The text with the build machine's header folders replaced by this environment's."""
    numpy = BUILD_PREFIX + r'/lib/python3\.\d+/site-packages/numpy/(?:_core|core)/include'
    python = BUILD_PREFIX + r'/include/python3\.\d+'
    text = re.sub(numpy, lambda _: numpy_include, text)
    return re.sub(python, lambda _: python_include, text)


if __name__ == '__main__':
    raise SystemExit(main())
