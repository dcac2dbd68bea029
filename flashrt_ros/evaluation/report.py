"""A Verdict as a table for the terminal and as JSON for machines.

In JSON every time is in seconds, every rate in Hz; a distribution without values has null figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flashrt_ros.evaluation.metrics import Summary
from flashrt_ros.evaluation.verdict import Verdict

RULE = '─'
COLUMNS = ('p50', 'p90', 'p99', 'max')


def to_json(verdict: Verdict, about: dict[str, Any]) -> str:
    """about: what the run was made with (machine, checkpoint, date, ...)."""
    content = {'passed': verdict.passed, 'about': about, **asdict(verdict)}
    return json.dumps(_without_nan(content), indent=2) + '\n'


def write_json(path: Path, verdict: Verdict, about: dict[str, Any]) -> None:
    path.write_text(to_json(verdict, about), encoding='utf-8')


def to_text(verdict: Verdict, about: dict[str, Any]) -> str:
    """Tables of rates, latency, inputs, commands and counters, and the verdict with its reasons."""
    parts = [
        _title('Run'),
        *(f'  {name:<12} {value}' for name, value in about.items()),
        _title('Rate [Hz]', ('wanted', 'achieved', 'messages', 'gap [ms]')),
        *_rates(verdict),
        _title('Latency [ms]', COLUMNS),
        *_summaries(verdict.stages),
        _row('= inference', verdict.inference, note='preprocess to postprocess'),
        _row('= total', verdict.latency, note='sensor stamp to chunk'),
        _title('Inputs [ms]', COLUMNS),
        *_summaries({f'age of {name}': age for name, age in verdict.ages.items()}),
        _row('skew', verdict.skew),
        _title('Commands [ms]', COLUMNS),
        _row('jitter', verdict.jitter, note='interval against period'),
        _row('lateness', verdict.lateness, note='behind the absolute grid'),
        *_tracking(verdict),
        _title('Counters'),
        '  ' + ', '.join(f'{name.replace("_", " ")} {value}' for name, value in verdict.counts.items()),
        *_verdict(verdict),
    ]
    return '\n'.join(parts) + '\n'


def _rates(verdict: Verdict) -> Iterable[str]:
    for name, rate in verdict.rates.items():
        figures = (
            f'{rate.wanted_hz:.2f}',
            f'{rate.achieved_hz:.2f}',
            str(rate.count),
            f'{rate.largest_gap * 1e3:.1f}',
        )
        yield _line(name, figures)


def _tracking(verdict: Verdict) -> Iterable[str]:
    if not verdict.tracking:
        return
    yield _title('Distance to the recorded commands [mrad]', COLUMNS)
    yield from _summaries(verdict.tracking)


def _verdict(verdict: Verdict) -> Iterable[str]:
    yield ''
    if verdict.passed:
        yield f'PASSED: every rate was kept for {verdict.window_s:.1f} s'
    for failure in verdict.failures:
        yield f'FAILED: {failure}'


def _summaries(summaries: dict[str, Summary]) -> Iterable[str]:
    return (_row(name, summary) for name, summary in summaries.items())


def _row(name: str, summary: Summary, note: str = '') -> str:
    values = (summary.p50, summary.p90, summary.p99, summary.largest)
    return _line(name, tuple(_milli(value) for value in values), note)


def _line(name: str, figures: Sequence[str], note: str = '') -> str:
    return f'  {name:<28}' + ''.join(f'{figure:>10}' for figure in figures) + (f'   {note}' if note else '')


def _title(name: str, columns: Sequence[str] = ()) -> str:
    line = f'{name:<30}' + ''.join(f'{column:>10}' for column in columns)
    return f'\n{line.rstrip()}\n{RULE * 70}'


def _milli(value: float) -> str:
    return '-' if math.isnan(value) else f'{value * 1e3:.2f}'


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
