"""Build the environment that runs lerobot: a virtual environment that borrows torch from this one.

usage: python environment.py DIRECTORY

lerobot 0.6.1 is written for Python 3.12 and for a torchvision whose compiled half matches torch. After
installing, the few places that say so are rewritten in the new environment's own copies.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PACKAGES = (
    'transformers==5.5.4',
    'draccus==0.11.6',
    'numpy==2.2.6',
    'gymnasium==1.4.0',
    'opencv-python-headless==4.13.0.92',
    'einops',
    'requests',
    'sentencepiece',
    'termcolor',
    'pillow',
)
WITHOUT_DEPENDENCIES = ('lerobot==0.6.1', 'torchvision==0.28.0')

OPERATORS = (
    'nms(Tensor boxes, Tensor scores, float threshold) -> Tensor',
    'qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor',
)
"""Operators for which torchvision registers a fake kernel at import, and which only its compiled half
declares.
"""


def build(directory: Path) -> Path:
    """Make the environment unless it is there, and return its interpreter."""
    python = directory / 'bin' / 'python'
    finished = directory / 'finished'
    if finished.is_file():
        return python
    venv.create(directory, clear=True, with_pip=True)
    install = [str(python), '-m', 'pip', 'install', '--quiet']
    subprocess.run([*install, *PACKAGES], check=True)
    subprocess.run([*install, '--no-deps', '--ignore-requires-python', *WITHOUT_DEPENDENCIES], check=True)
    site = Path(sysconfig.get_path('purelib', vars={'base': str(directory), 'platbase': str(directory)}))
    # Last on the path: only what the new environment lacks (torch and its needs) comes from here.
    (site / 'borrowed.pth').write_text(sysconfig.get_path('purelib') + '\n')
    declare_operators(site / 'torchvision' / 'extension.py')
    if sys.version_info < (3, 12):
        for path in (site / 'lerobot').rglob('*.py'):
            lower_syntax(path)
    finished.touch()
    return python


def declare_operators(path: Path) -> None:
    lines = ['', '', "_declared = torch.library.Library('torchvision', 'FRAGMENT')"]
    lines += ['if not _has_ops():'] + [f"    _declared.define('{operator}')" for operator in OPERATORS]
    path.write_text(path.read_text() + '\n'.join(lines) + '\n')


def lower_syntax(path: Path) -> None:
    """Rewrite the type parameters of Python 3.12 (PEP 695) in one file for Python 3.11."""
    source = path.read_text()
    parameters: set[str] = set()

    def forget(match: re.Match[str]) -> str:
        parameters.update(name.split(':')[0].strip() for name in match['names'].split(','))
        return match['head'] + match['rest']

    lowered = re.sub(r'^(?P<head> *class \w+)\[(?P<names>[^\]]+)\](?P<rest>)', forget, source, flags=re.M)
    lowered = re.sub(r'^(?P<head> *def \w+)\[(?P<names>[^\]]+)\](?P<rest>)', forget, lowered, flags=re.M)
    lowered = re.sub(r'^type (\w+) = ', r'\1 = ', lowered, flags=re.M)
    if lowered == source:
        return
    # A class that lost its parameters is still subscripted by its users.
    lowered = re.sub(
        r'^(class DataProcessorPipeline)\(', r'\1(typing.Generic[TInput, TOutput], ', lowered, flags=re.M
    )
    lowered = re.sub(r'^(class Backtrackable):', r'\1(typing.Generic[T]):', lowered, flags=re.M)
    preamble = 'import typing\n' + ''.join(
        f"{name} = typing.TypeVar('{name}')\n" for name in sorted(parameters)
    )
    future = re.search(r'^from __future__ .*\n', lowered, re.M)
    place = future.end() if future else 0
    path.write_text(lowered[:place] + preamble + lowered[place:])


if __name__ == '__main__':
    print(build(Path(sys.argv[1])))
