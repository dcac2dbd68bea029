"""Runs jobs with progress on the terminal."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from flashrt_ros.cli.progress import Progress
from flashrt_ros.errors import FlashRTError
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.evaluation.batch.plan import Job
from flashrt_ros.evaluation.batch.pool import run_jobs, run_with_ray, this_machine


def run_all(jobs: Sequence[Job], arguments: argparse.Namespace) -> dict[str, str]:
    """Run every job that is not finished. Returns 'VARIANT/EPISODE' -> why it has no results."""
    if getattr(arguments, 'again', False):
        for job in jobs:
            shutil.rmtree(job.folder, ignore_errors=True)
    lengths = {bag: _length_s(bag) for bag in {job.bag for job in jobs}}
    progress = Progress([lengths[job.bag] for job in jobs])
    failed: dict[str, str] = {}
    if getattr(arguments, 'ray', False):
        outcomes = run_with_ray(jobs, getattr(arguments, 'ray_address', None), progress.told)
    else:
        machine = this_machine(jobs, getattr(arguments, 'processes', None))
        outcomes = run_jobs(jobs, machine, progress.told)
    try:
        for number, outcome in outcomes:
            name = f'{outcome.variant}/{outcome.episode}'
            if outcome.error:
                failed[name] = outcome.error
            progress.ended(number, f'{name}: as before' if outcome.reused else '')
    finally:
        progress.close()
    return failed


def _length_s(bag: Path) -> float:
    try:
        with open_bag(bag, readable_part=True) as opened:
            return max(opened.duration_s, 0.1) if opened.topics else 0.1
    except FlashRTError:
        return 0.1  # The job will say what is wrong with it.
