"""What an operator reads in a terminal, from the reports of the nodes. No ROS: plain values in, lines out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LEVELS = ('ok', 'WARN', 'ERROR', 'STALE')

STAGES = ('transport', 'wait', 'take', 'preprocess', 'vision', 'prefill', 'denoise', 'postprocess', 'publish')

SHOWN = {
    'policy_node': (
        'tick rate [Hz]',
        'inference p50 [ms]',
        'inference p99 [ms]',
        'deadline_misses',
        'ticks_blocked',
        'inferences_failed',
        'delay [rows]',
    ),
    'action_streamer': (
        'command rate [Hz]',
        'command late p99 [ms]',
        'rows left',
        'underruns',
        'stops',
        'chunks_refused',
        'clamps by joint',
    ),
}
"""Node -> the values that its line shows; /diagnostics has all."""

QUIET = 3.0
"""Seconds without a report after which a node counts as gone; it reports every second."""


@dataclass(frozen=True)
class Report:
    """One status of /diagnostics. level: 0 ok, 1 warning, 2 error, 3 stale. age_s: since it came."""

    name: str
    level: int
    message: str
    values: Mapping[str, str]
    age_s: float


@dataclass(frozen=True)
class Latency:
    """Of the last inferences. stages: stage -> seconds. total: sensor stamp to publication."""

    stages: Mapping[str, float] = field(default_factory=dict)
    total: float = math.nan


def in_trouble(reports: Sequence[Report]) -> bool:
    """Whether a person should look: an error, a warning, or a node that has fallen silent."""
    return not reports or any(report.level > 0 or report.age_s > QUIET for report in reports)


def status_lines(reports: Sequence[Report], latency: Latency | None, width: int = 100) -> list[str]:
    """The whole view, without colours. reports: newest of each name."""
    if not reports:
        return ['nothing on /diagnostics: are the nodes running, in this ROS_DOMAIN_ID?']
    lines: list[str] = []
    nodes = [report for report in reports if ': input ' not in report.name]
    for node in nodes:
        kind = node.name.rsplit('/', 1)[-1]
        state = node.values.get('state', '')
        lines.append(_line(node, f'{node.name}  {state}', width))
        motion, reason = node.values.get('motion', ''), node.values.get('stop reason', '')
        if motion:
            lines.append(f'       motion {motion}' + (f': {reason}' if reason else ''))
        values = [f'{key} {node.values[key]}' for key in SHOWN.get(kind, ()) if key in node.values]
        lines += _wrapped(values, width, indent=7)
        for own in reports:
            if own.name.startswith(f'{node.name}: input '):
                lines.append(_input_line(own, width))
    if latency is not None and latency.stages:
        shown = [f'{stage} {latency.stages[stage] * 1e3:.1f}' for stage in STAGES if stage in latency.stages]
        lines += ['', f'latency [ms], sensor to chunk: {latency.total * 1e3:.1f}', *_wrapped(shown, width, 7)]
    return lines


def _line(report: Report, title: str, width: int) -> str:
    level = 'GONE' if report.age_s > QUIET else LEVELS[min(report.level, 3)]
    message = f'silent for {report.age_s:.0f} s' if report.age_s > QUIET else report.message
    return f'{level:5}  {title}  {message}'[:width]


def _input_line(report: Report, width: int) -> str:
    values, name = report.values, report.name.rsplit('input ', 1)[-1]
    rate, age = values.get('rate [Hz]', '?'), values.get('age [s]', '?')
    return f'  {LEVELS[min(report.level, 3)]:5} {name}: {rate} Hz, {age} s old  {report.message}'[:width]


def _wrapped(parts: Sequence[str], width: int, indent: int) -> list[str]:
    lines, current = [], ''
    for part in parts:
        if current and indent + len(current) + 3 + len(part) > width:
            lines.append(' ' * indent + current)
            current = ''
        current = f'{current} | {part}' if current else part
    return [*lines, ' ' * indent + current] if current else lines
