"""Closed-loop results as JSON, one HTML file, and a plot."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from flashrt_ros.evaluation.batch.folder import write_json
from flashrt_ros.evaluation.batch.summary import machine
from flashrt_ros.evaluation.closed_loop.run import Condition
from flashrt_ros.evaluation.closed_loop.score import Paired, Summary
from flashrt_ros.evaluation.closed_loop.text import figure as number
from flashrt_ros.evaluation.closed_loop.text import percent
from flashrt_ros.evaluation.page.html import card, page, svg, table, text, tile
from flashrt_ros.evaluation.plots import STYLE
from flashrt_ros.evaluation.score.sample import Estimate

COLOURS = ('#e4572e', '#2f6fa7', '#2f7d4f', '#8a6d1a', '#7b4ea3', '#1f2933', '#5b9bd5')
SIMULATION = 'simulation.json'


def write_results(
    out: Path,
    conditions: Sequence[Condition],
    summaries: Sequence[Summary],
    pairs: Sequence[Paired],
    command: str,
) -> Path:
    """Write simulation.json, report.html and success.png into `out`. Returns the page's path."""
    configs = {one.name: one for one in conditions}
    write_json(
        out / SIMULATION,
        {
            'command': command,
            'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'machine': machine(),
            'conditions': {
                one.name: {
                    **asdict(one),
                    'latency_s': configs[one.name].variant.latency_s,
                    'fault': asdict(configs[one.name].fault),
                    'config': configs[one.name].variant.config.model_dump(mode='json'),
                }
                for one in summaries
            },
            'pairs': [asdict(pair) for pair in pairs],
        },
    )
    drawn = success_figure(summaries, configs)
    with mpl.rc_context({**STYLE, 'savefig.facecolor': 'white'}):
        drawn.savefig(out / 'success.png')
    path = out / 'report.html'
    path.write_text(_page(summaries, pairs, drawn, command), encoding='utf-8')
    return path


def success_figure(summaries: Sequence[Summary], conditions: dict[str, Condition]) -> Figure:
    """Success and smoothness against latency, a line for each strategy and the rest; bars where latency is
    always the same."""
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(10.5, 3.6), layout='constrained')
        left, right = drawn.subplots(1, 2)
        series: dict[str, list[tuple[float, Summary]]] = {}
        for one in summaries:
            condition = conditions[one.name]
            latency = condition.variant.latency_s
            series.setdefault(_series_of(condition), []).append(((latency or 0.0) * 1e3, one))
        lines = any(len(points) > 1 for points in series.values())
        for place, (name, points) in enumerate(series.items()):
            colour, points = COLOURS[place % len(COLOURS)], sorted(points, key=lambda point: point[0])
            shift = (place - (len(series) - 1) / 2) * 1.5
            x = [latency + shift for latency, _ in points] if lines else [float(place)]
            for axes, pick, scale in ((left, 'success', 100.0), (right, 'jerk', 1.0)):
                found: list[Estimate] = [getattr(one, pick) for _, one in points]
                y = [(e.value or 0.0) * scale for e in found]
                errors = [
                    [max(0.0, v - (e.low or 0.0) * scale) for v, e in zip(y, found, strict=True)],
                    [max(0.0, (e.high or 0.0) * scale - v) for v, e in zip(y, found, strict=True)],
                ]
                axes.errorbar(
                    x, y, errors, color=colour, marker='o', markersize=4, linewidth=1.4, capsize=2, label=name
                )
        for axes, title, unit in ((left, 'Success', '%'), (right, 'Jerk of the commands, RMS', 'rad/s³')):
            axes.set_title(title)
            axes.set_ylabel(unit)
            if lines:
                axes.set_xlabel('latency of an inference [ms]')
            else:
                axes.set_xticks([])
        left.set_ylim(-3, 103)
        right.set_ylim(bottom=0)
        drawn.legend(*left.get_legend_handles_labels(), loc='outside right upper')
        return drawn


def _series_of(condition: Condition) -> str:
    """What tells a condition from others, but for its latency."""
    config = condition.variant.config
    precision = config.policy.precision or ('fp32' if config.policy.device == 'cpu' else 'bf16')
    words = [config.executor.strategy, f'{config.policy.device} {precision}', condition.fault.name]
    return ', '.join(word for word in words if word)


def _page(summaries: Sequence[Summary], pairs: Sequence[Paired], drawn: Figure, command: str) -> str:
    episodes = sum(len(one.results) for one in summaries)
    head = f'<h1>Closed loop</h1><p>{len(summaries)} conditions, {episodes} episodes</p>'
    first = summaries[0]
    tiles = ''.join(
        [
            tile(number(first.success, 100), '%', f'success, {first.name}', percent(first.success)),
            tile(number(first.seconds), 's', 'median time to success'),
            tile(number(first.jerk), 'rad/s³', 'jerk of the commands, RMS'),
            tile(number(first.inference_ms), 'ms', 'inference on this machine'),
        ]
    )
    columns = (
        'condition',
        'episodes',
        'success',
        'time [s]',
        'jerk',
        'seam [mrad]',
        'blocked [%]',
        'inference [ms]',
    )
    rows = [
        [
            text(one.name),
            str(len(one.results)),
            percent(one.success),
            number(one.seconds),
            number(one.jerk),
            number(one.seam, 1e3),
            number(one.blocked, 100),
            number(one.inference_ms),
        ]
        for one in summaries
    ]
    body = [
        '<h2 id="summary">Summary</h2>',
        f'<div class="tiles">{tiles}</div>',
        card(svg(drawn, 'success and smoothness')),
        card(table(columns, rows)),
    ]
    if pairs:
        paired = ('condition', f'against {text(pairs[0].reference)}', 'gained', 'lost', 'p')
        compared = [
            [text(p.name), percent(p.difference, signed=True), str(p.gained), str(p.lost), f'{p.p:.3f}']
            for p in pairs
        ]
        body += ['<h2 id="pairs">On the same seeds</h2>', card(table(paired, compared))]
    body.append('<h2 id="episodes">Episodes</h2>')
    for one in summaries:
        lines = [
            [
                str(result.seed),
                'success' if result.succeeded else 'lost' if result.lost else 'not done',
                '-' if result.seconds is None else f'{result.seconds:.2f}',
                f'{result.distance_m * 1e3:.0f}',
                f'{result.jerk:.1f}',
                str(result.chunks),
            ]
            for result in one.results
        ]
        inner = table(('seed', 'outcome', 'time [s]', 'distance [mm]', 'jerk', 'chunks'), lines)
        body.append(f'<details><summary>{text(one.name)}</summary>{card(inner)}</details>')
    date = datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')
    body.append(
        f'<pre>{text(command)}</pre><footer>Made by flashrt_ros on {text(date)}, {text(machine())}.</footer>'
    )
    links = [('summary', 'Summary'), *([('pairs', 'Pairs')] if pairs else []), ('episodes', 'Episodes')]
    return page('Closed loop', head, links, body)
