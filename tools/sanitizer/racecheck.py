"""GPU tests under compute-sanitizer's racecheck, and which of its reports count.

usage: python tools/sanitizer/racecheck.py [pytest arguments]

racecheck (CUDA 13.0) does not follow four ways to wait that the kernels use, and reports races where there
are none, though not each time. That it does so is shown at every run, by small kernels that are right
(controls.cu); only then are reports about the places that wait so left out. All others make this fail, and so
does a control that is judged otherwise than expected.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from watched import ENVIRONMENT, pytest_under

HERE = Path(__file__).parent
RACECHECK = ['compute-sanitizer', '--tool', 'racecheck', '--print-limit', '10000']

CONTROLS = {
    0: ('a race', ()),
    1: ('a barrier of some warps before that of all', (('load_four', 'soften'),)),
    2: (
        'one lane that arrives for its warp',
        (
            ('merge', 'Delivery::send'),
            ('merge', 'Delivery::begin'),
            ('load_four', 'copy_chunk'),
            ('load_four_transposed', 'copy_chunk'),
        ),
    ),
    3: (
        'half of the warps that meet or arrive between barriers of all',
        (
            ('gather_velocities', 'gather_velocities'),
            ('send_velocities', 'load_ends'),
            ('embed_actions', 'load_ends'),
        ),
    ),
    4: (
        'a warp that only arrives between barriers of two and of all',
        (('add_groups<(int)16, (int)4>', 'add_groups<(int)16, (int)4>'),),
    ),
}
"""Control -> what it is, and the functions that wait so: who reads, and who writes. All are reported."""

TRIES = 30
"""What racecheck says of a control depends on the order in which its warps ran."""

READ = re.compile(r'Race reported between (Read|Write) access at (?P<what>.*?)\+0x')
OTHER = re.compile(r'and (Read|Write) access at (?P<what>.*?)\+0x')


def main() -> int:
    allowed = [pair for _, pairs in CONTROLS.values() for pair in pairs]
    wrong = judge_controls()
    if wrong:
        return wrong
    command = pytest_under(RACECHECK, sys.argv[1:])
    environment = {**ENVIRONMENT, 'NV_COMPUTE_SANITIZER_MAX_RACECHECK_HAZARDS': '10000000'}
    lines = list[str]()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            lines.append(line)
            if not line.startswith('='):
                print(line, end='', flush=True)
    races = reported(lines)
    others = sorted(race for race in races if not any(_is(race, pair) for pair in allowed))
    print(f'racecheck: {len(races)} pairs of places reported, {len(others)} of them unexplained')
    for reader, writer in others:
        print(f'  {reader}\n  and {writer}')
    return process.returncode or bool(others)


def judge_controls() -> int:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / 'controls'
        subprocess.run(['nvcc', '-arch=native', '-o', program, HERE / 'controls.cu'], check=True)
        for number, (what, _) in CONTROLS.items():
            command = [*RACECHECK, program, str(number)]
            if not any(reported(_output(command)) for _ in range(TRIES)):
                print(f'racecheck does not report {what} (control {number}): look at {__file__} again')
                return 1
    return 0


def _output(command: list[str | Path]) -> list[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def reported(output: Iterable[str]) -> set[tuple[str, str]]:
    """Pairs of functions, as racecheck prints them, between which it saw a race."""
    pairs, first = set(), ''
    for line in output:
        if match := READ.search(line):
            first = match['what']
        elif match := OTHER.search(line):
            pairs.add((first, match['what']))
    return pairs


def _is(race: tuple[str, str], pair: tuple[str, str]) -> bool:
    return any(pair[0] in first and pair[1] in second for first, second in (race, race[::-1]))


if __name__ == '__main__':
    sys.exit(main())
