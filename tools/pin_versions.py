#!/usr/bin/env python3
"""Resolve every requirement on several Python versions and write constraints*.txt.

    tools/pin_versions.py --also torch==2.13.0 python3.10 python3.11 python3.12 python3.13

Nothing is installed: pip resolves and reports. ROS packages go into constraints-<distribution>.txt, the rest
into constraints.txt; where Python versions need different releases, each line carries its marker.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = ('kilted', 'jazzy')
GENERAL = ('requirements.txt', 'requirements-dev.txt', 'requirements-cuda.txt', 'requirements-sim.txt')

Releases = dict[str, dict[str, str]]
"""Package name -> Python version ('3.11') -> release."""


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument('pythons', nargs='+', help='interpreters, oldest first')
    options.add_argument(
        '--also', nargs=1, action='append', default=[], help='further requirement, e.g. torch==2.13.0'
    )
    arguments = options.parse_args()
    also = [requirement for (requirement,) in arguments.also]
    general: Releases = {}
    wanted = [*(f'-r{file}' for file in GENERAL), *also]
    for distribution in DISTRIBUTIONS:
        ros: Releases = {}
        for python in arguments.pythons:
            print(f'Resolving for {python} and ROS 2 {distribution}', flush=True)
            report = resolve(python, [*wanted, f'-rrequirements-{distribution}.txt'])
            collect(report, general, ros)
        write(f'constraints-{distribution}.txt', ros)
        write('constraints.txt', general)
        # The general packages are settled with the first distribution; the others take them as they are.
        wanted = ['-cconstraints.txt']


def resolve(python: str, arguments: list[str]) -> dict:
    """pip's installation report (a JSON object of the PyPA's standard) for these requirements."""
    with tempfile.NamedTemporaryFile(suffix='.json') as report:
        command = [python, '-m', 'pip', 'install', '--quiet', '--dry-run', '--ignore-installed']
        subprocess.run([*command, '--report', report.name, *arguments], check=True, cwd=ROOT)
        return json.load(report)


def collect(report: dict, general: Releases, ros: Releases) -> None:
    """Sort the releases of one report into the two tables."""
    python = report['environment']['python_version']
    for package in report['install']:
        name = re.sub(r'[-_.]+', '-', package['metadata']['name']).lower()
        # A local label such as +cpu names a build of the release, which is each machine's own choice.
        release = package['metadata']['version'].partition('+')[0]
        table = ros if name.startswith('ros-') else general
        table.setdefault(name, {})[python] = release


def write(file: str, table: Releases) -> None:
    lines = [line for name in sorted(table) for line in pins(name, table[name])]
    head = '# Written by tools/pin_versions.py: the releases that the project is tested with.\n'
    (ROOT / file).write_text(head + '\n'.join(lines) + '\n')
    print(f'{file}: {len(table)} packages')


def pins(name: str, releases: dict[str, str]) -> list[str]:
    """Constraint lines of one package; releases also serve Python versions that did not need the package."""
    pythons = sorted(releases, key=minor)
    lines = []
    start = 0
    while start < len(pythons):
        end = start
        while end + 1 < len(pythons) and releases[pythons[end + 1]] == releases[pythons[start]]:
            end += 1
        lower = f'python_version >= "{pythons[start]}"' if start > 0 else ''
        upper = f'python_version < "{pythons[end + 1]}"' if end + 1 < len(pythons) else ''
        marker = ' and '.join(part for part in (lower, upper) if part)
        lines.append(f'{name}=={releases[pythons[start]]}' + (f'; {marker}' if marker else ''))
        start = end + 1
    return lines


def minor(python: str) -> int:
    return int(python.split('.')[1])


if __name__ == '__main__':
    main()
