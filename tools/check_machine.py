#!/usr/bin/env python3
"""Does this machine have what the build needs? Run with the interpreter that is to be used.

tools/check_machine.py              # a line for each thing that is missing, and the command to install it
tools/check_machine.py --packages   # only the names of the Debian/Ubuntu packages
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

OLDEST, NEWEST = (3, 10), (3, 13)


def main() -> int:
    if '--packages' in sys.argv[1:]:
        print(' '.join(sorted(set(missing().values()))))
        return 0
    for problem in (wrong_python(), wrong_platform()):
        if problem:
            print(problem, file=sys.stderr)
            return 1
    lacking = missing()
    for what, package in lacking.items():
        print(f'missing: {what} (package {package})', file=sys.stderr)
    if lacking:
        packages = ' '.join(sorted(set(lacking.values())))
        print(f'Install it, then run make again:\n\n    sudo apt install {packages}\n', file=sys.stderr)
    return 1 if lacking else 0


def wrong_python() -> str:
    version = sys.version_info[:2]
    if OLDEST <= version <= NEWEST:
        return ''
    here = f'{sys.executable} is Python {version[0]}.{version[1]}'
    supported = 'the ROS 2 wheels exist for Python 3.10 to 3.13'
    return f'{here}; {supported}. Name another interpreter: make PYTHON=python3.12'


def wrong_platform() -> str:
    system, machine = platform.system(), platform.machine()
    if (system, machine) == ('Linux', 'x86_64'):
        return ''
    return (
        f'This is {system} on {machine}; the ROS 2 wheels exist for Linux on x86_64. '
        'With a ROS 2 installation, build with colcon instead: docs/installation.md'
    )


def missing() -> dict[str, str]:
    """What is missing -> Debian/Ubuntu package that brings it."""
    found = {
        ('C compiler gcc', 'gcc'): shutil.which('gcc'),
        ('C++ compiler g++', 'g++'): shutil.which('g++'),
        ('make', 'make'): shutil.which('make'),
        ('Python module venv', versioned('venv')): importlib.util.find_spec('ensurepip'),
        ('Python headers (Python.h)', versioned('dev')): has_headers(),
    }
    return {what: package for (what, package), present in found.items() if not present}


def has_headers() -> bool:
    return (Path(sysconfig.get_path('include')) / 'Python.h').is_file()


def versioned(part: str) -> str:
    return f'python{sys.version_info[0]}.{sys.version_info[1]}-{part}'


if __name__ == '__main__':
    raise SystemExit(main())
