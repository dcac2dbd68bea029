"""A comparison as text, and as one HTML file with the differences drawn."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from flashrt_ros.evaluation.batch.summary import VariantResults, machine
from flashrt_ros.evaluation.compare import BETTER, SAME, UNCLEAR, WORSE, Comparison, Difference
from flashrt_ros.evaluation.page.figures import MILLI, PAGE
from flashrt_ros.evaluation.page.html import card, page, svg, table, text, tile
from flashrt_ros.evaluation.plots import COMMANDED, INK, RECORDED, SOFT
from flashrt_ros.evaluation.score.actions import action_errors

COLOURS = {WORSE: '#b3261e', BETTER: '#2f7d4f', SAME: '#66727f', UNCLEAR: '#8a6d1a'}
RULE = '─'
SENTENCES = {
    WORSE: 'B is worse than A.',
    BETTER: 'B is better than A, and worse in nothing that decides.',
    SAME: 'B is as good as A, within what is allowed.',
    UNCLEAR: 'These bags do not show whether B is worse than A: more or longer ones would.',
}


def comparison_text(found: Comparison) -> str:
    """What decides, chunk against chunk, and the verdict."""
    lines = [f'A: {found.name_a}', f'B: {found.name_b}', '']
    lines.append(f'{"":<28}{"A":>10}{"B":>10}{"B - A":>10}  {"95 % interval":<22}{"allowed":>9}  verdict')
    lines.append(RULE * 98)
    lines += [_line(one) for one in found.decisive]
    if found.chunks:
        values = [
            f'{kind} {_number(found.chunks[f"all.{kind}"].value, 1e3)}' for kind in ('mae', 'p99', 'max')
        ]
        lines += ['', f'chunks of B against those of A [mrad or mm]: {", ".join(values)}']
    lines.append(f'intervals: paired bootstrap over {found.over} ({found.units})')
    if found.only_one:
        lines.append(f'only one of them has: {", ".join(found.only_one)}')
    lines += ['', f'{found.verdict.upper()}: {SENTENCES[found.verdict]}']
    return '\n'.join(lines)


def write_comparison(path: Path, found: Comparison, a: VariantResults, b: VariantResults) -> None:
    """Write the page."""
    with mpl.rc_context(PAGE):
        body = list(_body(found, a, b))
    chip = {WORSE: ' bad', UNCLEAR: ' note'}.get(found.verdict, '')
    head = (
        f'<h1>Comparison<span class="chip{chip}">{text(found.verdict)}</span></h1>'
        f'<p>A: {text(found.name_a)} &nbsp; B: {text(found.name_b)}</p>'
    )
    links = [('verdict', 'Verdict'), ('metrics', 'All metrics'), ('joints', 'By joint')]
    path.write_text(page('Comparison', head, links, body), encoding='utf-8')


def _body(found: Comparison, a: VariantResults, b: VariantResults) -> Iterator[str]:
    over = f'95 % intervals, paired bootstrap over {found.over}'
    yield f'<h2 id="verdict">{text(SENTENCES[found.verdict])}</h2><p class="lead">{text(over)}.</p>'
    if found.chunks and found.chunks['all.mae'].value is not None:
        tiles = [
            tile(_number(found.chunks[f'all.{kind}'].value, 1e3), 'mrad', f'chunks of B against A, {kind}')
            for kind in ('mae', 'p50', 'p99', 'max')
        ]
        yield f'<div class="tiles">{"".join(tiles)}</div>'
    yield card(svg(forest_figure(found.decisive), 'differences with intervals'))
    yield card(table(HEAD, (_row(one) for one in found.decisive)))
    yield '<h3>Error of every chunk, and by row</h3><div class="pair">'
    yield card(svg(pairs_figure(found, a, b), 'error of every chunk under A and B'))
    if a.scores.rows and b.scores.rows:
        yield card(svg(rows_figure(a, b), 'error by row under A and B'))
    yield '</div><h2 id="joints">By joint</h2>'
    yield card(table(HEAD, (_row(one) for one in found.all if one.metric.startswith('action_error.'))))
    yield '<h2 id="metrics">All metrics</h2>'
    others = [one for one in found.all if not one.metric.startswith('action_error.')]
    yield card(table(HEAD, (_row(one) for one in others)))
    date = datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')
    yield f'<footer>Made by flashrt_ros on {text(date)}, {text(machine())}.</footer>'


HEAD = ('', 'A', 'B', 'B − A', '95 %', 'allowed', 'verdict')


def _row(one: Difference) -> list[str]:
    kind = {WORSE: 'worse', BETTER: 'better'}.get(one.verdict, '')
    between = '' if one.low is None or one.high is None else f'[{_signed(one.low)}, {_signed(one.high)}]'
    return [
        text(one.metric),
        _plain(one.of_a),
        _plain(one.of_b),
        _signed(one.value),
        between,
        _plain(one.allowed) if one.allowed else '',
        f'<td class="{kind}">{text(one.verdict)}</td>',
    ]


def forest_figure(differences: Sequence[Difference]) -> Figure:
    """B minus A in percent of A, with the interval and what is allowed."""
    shown = [one for one in differences if one.value is not None and one.of_a]
    figure = Figure(figsize=(11, 0.9 + 0.36 * max(len(shown), 1)), layout='constrained')
    axes = figure.subplots()
    for place, one in enumerate(shown):
        scale = 100 / abs(one.of_a or 1.0)
        colour = COLOURS.get(one.verdict, SOFT)
        axes.plot(
            [0, one.allowed * scale], [place, place], color='#e4e7eb', linewidth=9, solid_capstyle='butt'
        )
        if one.low is not None and one.high is not None:
            axes.plot([one.low * scale, one.high * scale], [place, place], color=colour, linewidth=1.6)
        axes.plot((one.value or 0.0) * scale, place, marker='o', color=colour, markersize=6)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_yticks(range(len(shown)), [one.metric for one in shown])
    axes.tick_params(axis='y', labelcolor=INK, length=0)
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)
    axes.set_xlabel('B minus A, in percent of A: right of 0 is worse (grey: allowed)')
    return figure


def pairs_figure(found: Comparison, a: VariantResults, b: VariantResults) -> Figure:
    """Mean error of every chunk under A and under B, where both looked at the same moment."""
    figure = Figure(figsize=(5.4, 3.6), layout='constrained')
    axes = figure.subplots()
    of_a, of_b = ({e.name: e for e in one.episodes} for one in (a, b))
    for name in found.episodes:
        _, in_a, in_b = np.intersect1d(of_a[name].looked_ns, of_b[name].looked_ns, return_indices=True)
        means = [_means(action_errors(e)[i]) for e, i in ((of_a[name], in_a), (of_b[name], in_b))]
        axes.plot(means[0] * MILLI, means[1] * MILLI, '.', color=COMMANDED, alpha=0.6, markersize=5)
    edge = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([0, edge], [0, edge], color=INK, linewidth=0.8)
    axes.set_xlim(0, edge)
    axes.set_ylim(0, edge)
    axes.set_title('Error of every chunk')
    axes.set_xlabel('A [mrad or mm]')
    axes.set_ylabel('B [mrad or mm]')
    return figure


def rows_figure(a: VariantResults, b: VariantResults) -> Figure:
    """Mean error of all joints by row, of A and B."""
    figure = Figure(figsize=(5.4, 3.6), layout='constrained')
    axes = figure.subplots()
    for one, colour, label in ((a, RECORDED, 'A'), (b, COMMANDED, 'B')):
        place = np.arange(len(one.scores.rows['mae'])) * one.episodes[0].step_ns / 1e9
        rows = {name: values * MILLI for name, values in one.scores.rows.items()}
        axes.fill_between(place, rows['low'], rows['high'], color=colour, alpha=0.15, linewidth=0)
        axes.plot(place, rows['mae'].mean(axis=1), color=colour, label=label)
    axes.set_title('Error by how far ahead a row looks')
    axes.set_xlabel('ahead of the observation [s]')
    axes.set_ylabel('mrad or mm')
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _means(errors: np.ndarray) -> np.ndarray:
    """[n, H, D] -> [n]; nan where nothing is known."""
    known = np.isfinite(errors)
    total = np.where(known, np.abs(errors), 0.0).sum(axis=(1, 2))
    count = known.sum(axis=(1, 2)).astype(np.float64)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _line(one: Difference) -> str:
    between = '' if one.low is None or one.high is None else f'[{_signed(one.low)}, {_signed(one.high)}]'
    figures = f'{_plain(one.of_a):>10}{_plain(one.of_b):>10}{_signed(one.value):>10}'
    return f'{one.metric:<28}{figures}  {between:<22}{_plain(one.allowed):>9}  {one.verdict}'


def _plain(value: float | None) -> str:
    return '-' if value is None else f'{value:.4g}'


def _signed(value: float | None) -> str:
    return '-' if value is None else '0' if value == 0 else f'{value:+.3g}'


def _number(value: float | None, scale: float) -> str:
    return '-' if value is None else f'{value * scale:.3g}'
