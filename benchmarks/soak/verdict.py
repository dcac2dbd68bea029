"""From what was seen to what may be said."""

from __future__ import annotations

from typing import Any

from benchmarks.soak.process import Slope, slope

SETTLE_H, SETTLE_PART = 1.0, 0.1
"""What counts as settling: the first simulated hour, or a tenth where that is shorter."""

GROWTH_MIB = 10.0
"""A day, simulated: what a process may have more of at the end of it."""

PACE_KEPT = 0.98

PASSED, FAILED, OPEN = 'passed', 'FAILED', 'not shown'


def growth(hours: list[float], values: list[float]) -> Slope | None:
    """Per simulated day, after settling."""
    if not hours:
        return None
    begin = min(SETTLE_H, SETTLE_PART * hours[-1])
    kept = [(hour / 24, value) for hour, value in zip(hours, values, strict=True) if hour >= begin]
    return slope([day for day, _ in kept], [value for _, value in kept])


def judge(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figures, passed or not) of everything that the run is about."""
    commands, chunks, holds, rows = report['commands'], report['chunks'], report['holds'], []
    figures = '{published} of {expected}, {missed} missed ({skipped} by its own count)'.format(**commands)
    rows.append(('commands on the grid', figures, _if(commands['missed'] == 0 and commands['published'] > 0)))
    told = (
        '{count}, {busy} of them for want of a processor; {total_s:.1f} s in all, longest {longest_s:.3f} s'
    )
    rows.append(('time held for a command', told.format(**holds), ''))
    rows.append(('somebody waited for a processor', f'{report["pressure"]:.0%} of the time', ''))
    pace = '{mean_speed:.2f} x of {speed:g} x, {passed_h:.2f} of {hours:g} h'.format(**report)
    rows.append(('pace', pace, _if(report['mean_speed'] > PACE_KEPT * report['speed'])))
    largest = f'{commands["largest_gap_s"]:.3f} s, period {commands["period_s"]:.3f} s'
    rows.append(('largest gap', largest, _if(commands['largest_gap_s'] < 2 * commands['period_s'])))
    rows.append(('beside the grid', str(commands['duplicates']), _if(commands['duplicates'] == 0)))
    figures = '{published} of {expected}, {skipped} ticks skipped, {lost} lost, {late} late'.format(**chunks)
    enough = chunks['published'] + chunks['skipped'] >= chunks['expected'] - 1
    rows.append(('chunks', figures, _if(enough and not chunks['lost'] and not chunks['late'])))
    rows.append(('stops', str(report['stops']), _if(not report['stops'])))
    for name, process in report['processes'].items():
        rows += _of_process(name, process)
    rows.append(('ended', report['ended'], _if(report['ended'] == 'at the end of its time')))
    return rows


def _of_process(name: str, process: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = growth(process['hours'], process['rss_mib'])
    if found is None:
        memory = ('too few readings', OPEN)
    else:
        said = f'{found.middle:+.2f} MiB a day [{found.low:+.2f}, {found.high:+.2f}]'
        said += f', {process["rss_mib"][-1]:.1f} MiB at the end'
        verdict = FAILED if found.low > GROWTH_MIB else OPEN if found.high > GROWTH_MIB else PASSED
        memory = said, verdict
    rows = [(f'{name}: memory', *memory)]
    for what in ('threads', 'files'):
        settled = process[what][len(process[what]) // 10 :]
        steady = bool(settled) and settled[-1] <= settled[0]
        figures = f'{settled[0]} to {settled[-1]}, at most {max(settled)}' if settled else 'none read'
        rows.append((f'{name}: {what}', figures, _if(steady)))
    return rows


def _if(good: bool) -> str:
    return PASSED if good else FAILED


def table(rows: list[tuple[str, str, str]]) -> str:
    wide = [max(len(row[column]) for row in rows) for column in range(3)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)) for row in rows
    )


def exit_code(rows: list[tuple[str, str, str]]) -> int:
    """1: something failed. 2: nothing did, but something was not shown. 0: all passed."""
    verdicts = {row[2] for row in rows}
    return 1 if FAILED in verdicts else 2 if OPEN in verdicts else 0
