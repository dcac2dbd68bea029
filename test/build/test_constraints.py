"""Every package that is asked for by name has one release on each supported Python."""

import re

import pytest
from packaging.requirements import Requirement

from .tool import ROOT

PYTHONS = ('3.10', '3.11', '3.12', '3.13')
GENERAL = (
    'requirements.txt',
    'requirements-dev.txt',
    'requirements-cuda.txt',
    'requirements-sim.txt',
    'requirements-sim-models.txt',
)


def requirements(*files: str) -> list[Requirement]:
    lines = (line.split('#')[0].strip() for file in files for line in (ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def normal(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


@pytest.mark.parametrize('distribution', ['kilted', 'jazzy'])
@pytest.mark.parametrize('python', PYTHONS)
def test_each_requirement_is_pinned_to_one_release(distribution, python):
    pins: dict[str, list[str]] = {}
    for pin in requirements('constraints.txt', f'constraints-{distribution}.txt'):
        if pin.marker is None or pin.marker.evaluate({'python_version': python}):
            pins.setdefault(normal(pin.name), []).append(str(pin.specifier).removeprefix('=='))
    for wanted in requirements(*GENERAL, f'requirements-{distribution}.txt'):
        releases = pins.get(normal(wanted.name), [])
        assert len(releases) == 1, f'{wanted.name} on Python {python}: {releases}'
        assert wanted.specifier.contains(releases[0])
