"""Closed-loop results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flashrt_ros.evaluation.closed_loop.score import Paired, Summary
from flashrt_ros.evaluation.page.text import RULE
from flashrt_ros.evaluation.score.sample import Estimate


def summary_text(summaries: Sequence[Summary], pairs: Sequence[Paired]) -> str:
    return '\n'.join([*_conditions(summaries), *(['', *_pairs(pairs)] if pairs else [])])


def percent(found: Estimate, signed: bool = False) -> str:
    """'82.0 % [69, 90]'."""
    if found.value is None or found.low is None or found.high is None:
        return '-'
    sign = '+' if signed else ''
    return f'{found.value * 100:{sign}.1f} % [{found.low * 100:{sign}.0f}, {found.high * 100:{sign}.0f}]'


def figure(found: Estimate, scale: float = 1.0) -> str:
    if found.value is None:
        return '-'
    value = found.value * scale
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _conditions(summaries: Sequence[Summary]) -> Iterator[str]:
    yield (
        f'{"condition":<38}{"episodes":>9}  {"success, 95 % interval":<24}{"time [s]":>10}{"jerk":>10}'
        f'{"seam [mrad]":>12}{"blocked":>9}{"infer [ms]":>11}'
    )
    yield RULE * 123
    for one in summaries:
        yield (
            f'{one.name:<38}{len(one.results):>9}  {percent(one.success):<24}{figure(one.seconds):>10}'
            f'{figure(one.jerk):>10}{figure(one.seam, 1e3):>12}{figure(one.blocked, 100) + " %":>9}'
            f'{figure(one.inference_ms):>11}'
        )
    yield 'success: Wilson interval; time: median to success; jerk: RMS [rad/s^3]; seam: p90 jump'


def _pairs(pairs: Sequence[Paired]) -> Iterator[str]:
    title = f'against {pairs[0].reference}, same seeds'
    yield f'{title:<44}{"difference, 95 % interval":<28}{"gained":>7}{"lost":>6}{"p":>8}'
    yield RULE * 93
    for one in pairs:
        difference = percent(one.difference, signed=True)
        yield f'{one.name:<44}{difference:<28}{one.gained:>7}{one.lost:>6}{one.p:>8.3f}'
