"""The soak's own measures: a missed command is seen, growth is told from noise, and an early end reports."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak.process import read, slope
from benchmarks.soak.robot import PERIOD_NS
from benchmarks.soak.verdict import FAILED, OPEN, PASSED, exit_code, growth, judge, table
from benchmarks.soak.witness import FIRST, Grid

MS = 1_000_000
BEGIN = 1_700_000_000_000 * MS
PERIOD = 200 * MS


def grid_after(stamps):
    """The grid once it is known and then `stamps`, counted from its next place."""
    grid = Grid(PERIOD)
    for index in range(FIRST):
        grid.note(BEGIN + index * PERIOD)
    for stamp in stamps:
        grid.note(BEGIN + FIRST * PERIOD + stamp)
    return grid


def test_every_place_of_the_grid_has_its_command():
    grid = grid_after([0, PERIOD, 2 * PERIOD])
    assert (grid.count, grid.missed, grid.duplicates, grid.late, grid.largest) == (4, 0, 0, 0, PERIOD)
    assert grid.expected(BEGIN + (FIRST + 2) * PERIOD) == 4


def test_a_late_command_is_no_missed_one():
    grid = grid_after([0, PERIOD + 50 * MS, 2 * PERIOD])
    assert (grid.missed, grid.late, grid.largest) == (0, 1, PERIOD + 50 * MS)


def test_missed_and_doubled_commands_are_counted():
    grid = grid_after([0, 3 * PERIOD, 3 * PERIOD + 50 * MS])
    assert (grid.missed, grid.duplicates) == (2, 1)
    assert grid.gaps == [(BEGIN + FIRST * PERIOD, 3 * PERIOD)]


def test_the_first_commands_may_be_late_without_shifting_the_grid():
    grid = Grid(PERIOD)
    for index in range(FIRST):
        grid.note(BEGIN + index * PERIOD + (50 * MS if index in (0, 7) else 0))
    grid.note(BEGIN + FIRST * PERIOD)
    assert (grid.late, grid.missed, grid.duplicates) == (0, 0, 0)


def test_a_command_is_about_to_be_missed_when_the_next_is_due():
    grid = grid_after([0])
    assert not grid.behind(BEGIN + (FIRST + 1) * PERIOD + PERIOD - 1)
    assert grid.behind(BEGIN + (FIRST + 2) * PERIOD)


def test_the_bounds_hold_the_slope_under_noise_and_outliers():
    random, days = np.random.default_rng(0), np.linspace(0, 1, 200)
    found = []
    for _ in range(60):
        noise = random.normal(0, 0.5, len(days)) + 30 * (random.random(len(days)) < 0.03)
        found.append(slope(days, 400 + 20 * days + noise))
    assert all(19 < one.middle < 21 for one in found)
    assert sum(one.low < 20 < one.high for one in found) >= 51
    assert max(one.high - one.low for one in found) < 1.5
    assert slope(days[:5], days[:5]) is None


def test_settling_is_no_growth():
    hours = list(np.linspace(0, 24, 200))
    assert abs(growth(hours, [400 + 50 * min(1.0, hour) for hour in hours]).middle) < 1e-6


def test_what_the_kernel_says_of_this_process():
    begin = read(os.getpid())
    with open(os.devnull):
        opened = read(os.getpid())
    assert opened.files == begin.files + 1
    assert opened.cpu_s >= begin.cpu_s
    assert opened.waited_s >= begin.waited_s
    assert 10 < begin.rss_mib < 100_000
    assert begin.threads >= 1


def a_report(**changes):
    hours = list(np.linspace(0, 24, 50))
    process = {'hours': hours, 'rss_mib': [300.0] * 50, 'threads': [9] * 50, 'files': [20] * 50}
    whole = {
        'commands': {'published': 10, 'expected': 10, 'missed': 0, 'skipped': 0, 'duplicates': 0}
        | {'largest_gap_s': 0.25, 'period_s': 0.2},
        'holds': {'count': 0, 'busy': 0, 'total_s': 0.0, 'longest_s': 0.0},
        'chunks': {'published': 5, 'expected': 5, 'skipped': 0, 'lost': 0, 'late': 0},
        'pressure': 0.1,
        'mean_speed': 10.0,
        'speed': 10.0,
        'passed_h': 24.0,
        'hours': 24.0,
        'stops': 0,
        'processes': {'streamer': process},
        'ended': 'at the end of its time',
    }
    for key, value in changes.items():
        whole[key] = {**whole[key], **value} if isinstance(value, dict) else value
    return whole


def test_a_good_day_passes():
    rows = judge(a_report())
    assert exit_code(rows) == 0
    assert 'FAILED' not in table(rows)


@pytest.mark.parametrize(
    ('what', 'changes'),
    [
        ('commands on the grid', {'commands': {'missed': 1}}),
        ('largest gap', {'commands': {'largest_gap_s': 0.4}}),
        ('chunks', {'chunks': {'lost': 1}}),
        ('stops', {'stops': 1}),
        ('pace', {'mean_speed': 9.0}),
        ('ended', {'ended': 'interrupted'}),
    ],
)
def test_whatever_went_wrong_fails(what, changes):
    rows = judge(a_report(**changes))
    assert [row[0] for row in rows if row[2] == FAILED] == [what]
    assert exit_code(rows) == 1


def test_growth_fails_and_too_short_a_run_shows_nothing():
    report = a_report()
    process = report['processes']['streamer']
    process['rss_mib'] = [300 + 2 * hour for hour in process['hours']]
    process['files'] = [20] * 25 + [21] * 25
    assert exit_code(judge(report)) == 1
    short = {key: value[:5] for key, value in process.items()}
    rows = judge(a_report(processes={'streamer': short}))
    assert {row[2] for row in rows} - {''} == {PASSED, OPEN}
    assert exit_code(rows) == 2


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.timeout(300)
def test_a_streamer_that_stands_still_is_caught_and_an_interrupted_run_reports(ros_domain, tmp_path):
    """Stopped for longer than time waits, it misses commands; interrupted, the run says so."""
    output = tmp_path / 'soak.json'
    command = [sys.executable, '-u', '-m', 'benchmarks.soak', '--speed', '5', '--every', '1']
    command += ['--output', str(output), '--logs', str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as run:
        assert ' 0 missed' in run.stdout.readline()
        streamer = next(pid for pid in _children(run.pid) if 'action_streamer' in _command_line(pid))
        os.kill(streamer, signal.SIGSTOP)
        time.sleep(4.0)
        os.kill(streamer, signal.SIGCONT)
        time.sleep(2.0)
        run.send_signal(signal.SIGINT)
        said = run.stdout.read()
        assert run.wait() == 1
    report = json.loads(output.read_text())
    assert report['ended'] == 'interrupted'
    assert 'interrupted' in said
    assert report['commands']['missed'] >= 0.5 * 2.0 * 5 * 1e9 / PERIOD_NS
    assert report['commands']['gaps']
    assert report['commands']['largest_gap_s'] > 2.0
    assert [hold['came'] for hold in report['holds']['first']].count(False) == 1
    assert not Path(f'/proc/{streamer}').exists()


def _children(pid):
    folder = Path(f'/proc/{pid}/task/{pid}/children')
    return [int(word) for word in folder.read_text().split()] if folder.exists() else []


def _command_line(pid):
    return Path(f'/proc/{pid}/cmdline').read_text()
