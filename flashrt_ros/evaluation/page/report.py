"""An evaluation as one HTML file that people look at, and its plots as PNG."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import yaml

from flashrt_ros.evaluation.batch.summary import VariantResults, machine
from flashrt_ros.evaluation.page import figures
from flashrt_ros.evaluation.page.html import card, jpeg, page, svg, table, text, tile
from flashrt_ros.evaluation.page.moments import Moment, worst_moments
from flashrt_ros.evaluation.page.text import COLUMNS, HEADLINES
from flashrt_ros.evaluation.plots import STYLE
from flashrt_ros.evaluation.replay.episode import Episode
from flashrt_ros.evaluation.replay.problems import Problem
from flashrt_ros.evaluation.score.inputs import input_figures
from flashrt_ros.evaluation.score.sample import Estimate
from flashrt_ros.loading import options_of

OVERVIEW_S = 60.0
"""Longest part of an episode in one plot of its joints."""

CLOSE_S = 5.0
"""The closer look at the worst moment."""

SHOWN_EPISODES = 4
"""More episodes than this have figures in the table only."""


def write_report(
    out: Path,
    results: Sequence[VariantResults],
    broken: Mapping[str, Sequence[str]],
    failed: Mapping[str, str],
) -> Path:
    """Write report.html into `out` and PNG plots into the folder of every variant. Returns the page's path.

    broken: variant -> limits that it does not keep. failed: 'VARIANT/EPISODE' -> why it has no results.
    """
    for one in results:
        write_pngs(out / one.name, one)
    links = [('summary', 'Summary'), *((f'v-{one.name}', one.name) for one in results)]
    body = [_summary(results, broken, failed)]
    with mpl.rc_context(figures.PAGE):
        for one in results:
            body += _variant(one, out / one.name, broken.get(one.name, ()))
    date = datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')
    body.append(f'<footer>Made by flashrt_ros on {text(date)}, {text(machine())}.</footer>')
    path = out / 'report.html'
    path.write_text(page('Replay evaluation', _head(results, broken, failed), links, body), encoding='utf-8')
    return path


def write_pngs(folder: Path, results: VariantResults) -> None:
    """joints.png, errors.png, rows.png, latency.png and timeline.png."""
    with mpl.rc_context({**STYLE, 'savefig.facecolor': 'white'}):
        episode = results.episodes[0]
        drawn = {'joints.png': figures.joints_figure(episode, 0.0, min(episode.duration_s, OVERVIEW_S))}
        if results.scores.rows:
            drawn['errors.png'] = figures.error_map_figure(results)
            drawn['rows.png'] = figures.error_rows_figure(results)
        drawn['latency.png'] = figures.latency_figure(results)
        drawn['timeline.png'] = figures.timeline_figure(results)
        for name, figure in drawn.items():
            figure.savefig(folder / name)


def _head(
    results: Sequence[VariantResults], broken: Mapping[str, Sequence[str]], failed: Mapping[str, str]
) -> str:
    episodes = {episode.name: episode.duration_s for one in results for episode in one.episodes}
    chunks = sum(episode.chunks for one in results for episode in one.episodes)
    chip = '<span class="chip">evaluated</span>'
    if any(broken.values()):
        chip = '<span class="chip bad">over a limit</span>'
    elif failed:
        chip = '<span class="chip note">in part</span>'
    checkpoints = sorted({Path(one.config.policy.checkpoint).name for one in results})
    noun = 'episode' if len(episodes) == 1 else 'episodes'
    told = f'{len(episodes)} {noun}, {sum(episodes.values()):.1f} s, {chunks} chunks'
    return f'<h1>Replay evaluation{chip}</h1><p>{text(", ".join(checkpoints))} on {text(told)}</p>'


def _summary(
    results: Sequence[VariantResults], broken: Mapping[str, Sequence[str]], failed: Mapping[str, str]
) -> str:
    parts = ['<h2 id="summary">Summary</h2>', f'<p class="lead">{_how(results[0])}</p>']
    parts.append(f'<div class="tiles">{"".join(_tiles(results[0]))}</div>')
    if len(results) > 1:
        head = ['', *(text(label) for label, *_ in COLUMNS), 'inference p50 [ms]', 'blocked [%]']
        parts.append(card(table(head, (_variant_row(one) for one in results))))
    lines = [f'{name}: {line}' for name, found in broken.items() for line in found]
    lines += [f'not evaluated: {name}: {why}' for name, why in failed.items()]
    if lines:
        parts.append(f'<ul class="problems">{"".join(f"<li>{text(line)}</li>" for line in lines)}</ul>')
    return ''.join(parts)


def _how(one: VariantResults) -> str:
    late = (
        'as late as each inference was here' if one.latency_s is None else f'{one.latency_s * 1e3:g} ms late'
    )
    mode = 'in lockstep' if one.latency_s == 0 else f'chunks {late}'
    if one.latency_s is not None:
        mode += ' (pictures are decoded and resized ahead, which the times here leave out)'
    over = 'episodes' if one.scores.over == 'episodes' else one.scores.over
    return text(
        f'{one.name}, {mode}. Errors are against what was commanded in the recording, in mrad (joints that '
        f'turn) or mm (joints that slide). Brackets: 95 % intervals, bootstrap over {over}.'
    )


def _tiles(one: VariantResults) -> Iterator[str]:
    wanted = [('rows of chunks against the recording, MAE', 'action_error.all.mae', 1e3, 'mrad')]
    wanted += [(label, name, scale, unit.replace(' or mm', '')) for label, name, scale, unit in HEADLINES]
    wanted.append(('inference on this machine, p50', 'stage.inference.p50', 1e3, 'ms'))
    for label, name, scale, unit in wanted:
        found = one.scores.metrics.get(name) or one.stages.get(name)
        if found is not None and found.value is not None:
            short = unit.replace('rad/s^3 or m/s^3', 'rad/s³')
            yield tile(_figure(found.value * scale), short, label, _between(found, scale))


def _variant_row(one: VariantResults) -> list[str]:
    values = [_cell(one.scores.metrics[name], scale) for _, name, scale in COLUMNS]
    inference = one.stages.get('stage.inference.p50')
    blocked = one.scores.metrics['blocked.all.mean']
    values += [_cell(inference, 1e3) if inference else '-', _cell(blocked, 100.0)]
    return [f'<a href="#v-{text(one.name)}">{text(one.name)}</a>', *values]


def _variant(one: VariantResults, folder: Path, broken: Sequence[str]) -> Iterator[str]:
    chip = '<span class="chip bad">over a limit</span>' if broken else ''
    yield f'<h2 id="v-{text(one.name)}">{text(one.name)}{chip}</h2>'
    policy, rates = one.config.policy, one.config.rates
    yield (
        f'<p class="lead">{text(Path(policy.checkpoint).name)}, {text(policy.device)} '
        f'{text(options_of(one.config).precision)}; a chunk {rates.chunk_rate_hz:g} times a second, '
        f'commands at {rates.control_rate_hz:g} Hz</p>'
    )
    moments = worst_moments(one, folder)
    for episode in one.episodes[:SHOWN_EPISODES]:
        yield from _joints(episode, [moment for moment in moments if moment.episode is episode])
    if one.scores.rows:
        yield '<h3>Error by joint and row of the horizon</h3>'
        yield card(svg(figures.error_map_figure(one), 'mean error by joint and row'))
    yield card(table(['mrad or mm', 'MAE', '95 %', 'RMSE', 'p50', 'p90', 'p99'], _joint_rows(one)))
    if moments:
        yield '<h3>Furthest from the recording</h3>'
        yield f'<div class="moments">{"".join(_moment(moment) for moment in moments)}</div>'
    yield '<h3>How far ahead, and how long it takes</h3><div class="pair">'
    if one.scores.rows:
        yield card(svg(figures.error_rows_figure(one), 'error by row'))
    yield card(svg(figures.latency_figure(one), 'histogram of the inference')) + '</div>'
    yield card(svg(figures.timeline_figure(one), 'stages of every chunk'))
    yield '<h3>Inputs</h3>' + card(table(INPUT_HEAD, _input_rows(one)))
    yield from _episodes(one)
    yield f'<details><summary>Configuration</summary><pre>{text(_yaml(one))}</pre></details>'


def _joints(episode: Episode, moments: Sequence[Moment]) -> Iterator[str]:
    end = min(episode.duration_s, OVERVIEW_S)
    part = '' if end == episode.duration_s else f', the first {end:.0f} of {episode.duration_s:.0f} s'
    yield f'<h3>Joints of {text(episode.name)}{part}</h3>'
    yield card(svg(figures.joints_figure(episode, 0.0, end), f'joints of {episode.name}'))
    if moments and episode.duration_s > 2 * CLOSE_S:
        begin = max(0.0, min(moments[0].seconds - CLOSE_S / 3, episode.duration_s - CLOSE_S))
        close = figures.joints_figure(episode, begin, begin + CLOSE_S)
        part = f'{begin:.1f} to {begin + CLOSE_S:.1f} s'
        yield f'<details><summary>A closer look at {part}, where it is worst</summary>'
        yield card(svg(close, 'closer look')) + '</details>'


def _joint_rows(one: VariantResults) -> Iterator[list[str]]:
    for column in (*one.episodes[0].joints, 'all'):
        found = [
            one.scores.metrics[f'action_error.{column}.{s}'] for s in ('mae', 'rmse', 'p50', 'p90', 'p99')
        ]
        mae, *others = found
        others_shown = [_value(other, 1e3) for other in others]
        yield [text(column), _value(mae, 1e3), _between(mae, 1e3), *others_shown]


def _moment(moment: Moment) -> str:
    name = moment.episode.joints[moment.joint]
    views = ''.join(jpeg(data, view) for view, data in moment.pictures.items())
    drawn = svg(figures.moment_figure(moment.episode, moment.chunk, moment.joint), name)
    caption = (
        f'<b>{moment.seconds:.2f} s</b> of {text(moment.episode.name)}: {moment.error * 1e3:.0f} mrad '
        f'on average, {text(name)} {moment.joint_error * 1e3:.0f}'
    )
    return (
        f'<figure class="card moment"><figcaption>{caption}</figcaption>'
        f'<div class="views">{views}</div>{drawn}</figure>'
    )


INPUT_HEAD = (
    'input',
    'messages',
    'rate [Hz]',
    'gaps',
    'longest gap [ms]',
    'back',
    'transport p99 [ms]',
    'age p50 [ms]',
)


def _input_rows(one: VariantResults) -> Iterator[list[str]]:
    for episode in one.episodes[:SHOWN_EPISODES]:
        for name, found in input_figures(episode).items():
            label = name if len(one.episodes) == 1 else f'{episode.name}: {name}'
            yield [
                text(label),
                str(found.messages),
                '-' if found.rate_hz is None else f'{found.rate_hz:.2f}',
                str(found.gaps),
                '-' if found.longest_gap_s is None else f'{found.longest_gap_s * 1e3:.0f}',
                str(found.back),
                f'{found.transport.p99 * 1e3:.1f}',
                f'{found.age.p50 * 1e3:.1f}',
            ]


def _episodes(one: VariantResults) -> Iterator[str]:
    """What of every episode could not be used, and the counters of the executor."""
    for episode in one.episodes:
        for problem in episode.problems:
            line = f'{episode.name}: {Problem(**problem)}'
            yield f'<ul class="problems"><li>{text(line)}</li></ul>'
    rows = [
        [text(e.name), f'{e.duration_s:.1f}', *(str(e.counts.get(n, 0)) for n in COUNTERS)]
        for e in one.episodes
    ]
    yield card(table(['episode', 's', *(text(name.replace('_', ' ')) for name in COUNTERS)], rows))


COUNTERS = (
    'chunks_accepted',
    'commands',
    'underruns',
    'stops',
    'position_clamps',
    'step_clamps',
    'ticks_skipped',
)


def _yaml(one: VariantResults) -> str:
    return yaml.safe_dump(one.config.model_dump(mode='json'), sort_keys=False)


def _cell(found: Estimate, scale: float) -> str:
    return f'{_value(found, scale)} <small>{_between(found, scale)}</small>'


def _value(found: Estimate, scale: float) -> str:
    return '-' if found.value is None else _figure(found.value * scale)


def _between(found: Estimate, scale: float) -> str:
    if found.low is None or found.high is None:
        return ''
    return f'[{_figure(found.low * scale)}, {_figure(found.high * scale)}]'


def _figure(value: float) -> str:
    """Three significant figures, without an exponent."""
    if value == 0:
        return '0'
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
