"""Plots of one variant, drawn with matplotlib: joints with chunk fans, errors by row, latency, worst
moments."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from flashrt_ros.evaluation.batch.summary import VariantResults
from flashrt_ros.evaluation.plots import COMMANDED, FAN, INK, MEASURED, RECORDED, SOFT, STAGE_COLOURS, STYLE
from flashrt_ros.evaluation.replay.episode import Episode
from flashrt_ros.evaluation.score.actions import row_times

HEAT = LinearSegmentedColormap.from_list('heat', ['#fbfaf7', '#fbd9a5', '#f2935c', '#c8402f', '#5c1130'])
PAGE: Any = {**STYLE, 'svg.fonttype': 'none', 'svg.hashsalt': 'flashrt', 'figure.facecolor': 'none'}
"""matplotlib's settings while figures of a page are made: text stays text, the same figure gives the same
bytes."""

MILLI = 1e3

TIMELINE_COLUMNS = 400
"""Most columns of the timeline; each of its bars is an object of several kilobytes."""


def joints_figure(episode: Episode, begin_s: float, end_s: float, height: float = 1.55) -> Figure:
    """One panel a joint: commanded against recorded between two times of the bag, chunks as a fan behind."""
    columns = 2 if len(episode.joints) > 1 else 1
    rows = -(-len(episode.joints) // columns)
    figure = Figure(figsize=(11, 0.7 + height * rows), layout='constrained')
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    times = (row_times(episode) - episode.begin_ns) / 1e9
    seen = (times[:, 0] < end_s) & (times[:, -1] > begin_s) if episode.chunks else np.zeros(0, dtype=bool)
    for column, (name, axes) in enumerate(zip(episode.joints, panels, strict=False)):
        _draw_joint(axes, episode, column, times[seen], episode.actions[seen, :, column], (begin_s, end_s))
        axes.set_title(name)
    for axes in list(panels) + figure.axes[len(episode.joints) :]:
        axes.set_visible(False)
    for axes in figure.axes[max(0, len(episode.joints) - columns) : len(episode.joints)]:
        axes.set_xlabel('time in the bag [s]')
        axes.tick_params(labelbottom=True)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc='outside upper right', ncols=len(labels))
    for line in legend.get_lines():
        line.set(alpha=1.0, linewidth=2.0)
    return figure


def _draw_joint(
    axes: Axes, episode: Episode, column: int, times: np.ndarray, rows: np.ndarray, span: tuple[float, float]
) -> None:
    lines = np.stack([times, rows], axis=-1)
    axes.add_collection(LineCollection(list(lines), colors=FAN, alpha=0.8, linewidths=0.8, rasterized=True))
    axes.plot([], [], color=FAN, label='predicted chunks')
    shown = []
    for times_ns, values, colour, width, label in (
        (episode.measured_ns, episode.measured, MEASURED, 0.9, 'recorded joint'),
        (episode.reference_ns, episode.reference, RECORDED, 1.1, 'recorded command'),
        (episode.commands_ns, episode.commands, COMMANDED, 1.3, 'command of this policy'),
    ):
        seconds = (times_ns - episode.begin_ns) / 1e9
        inside = (seconds >= span[0]) & (seconds <= span[1])
        shown.append(values[inside, column])
        axes.plot(seconds[inside], values[inside, column], color=colour, linewidth=width, label=label)
    axes.set_xlim(*span)
    values = np.concatenate(shown)
    if values.size:
        # A chunk that is far off must not flatten the curves that were executed.
        margin = 0.12 * np.ptp(values) + 0.02
        axes.set_ylim(values.min() - margin, values.max() + margin)


def error_map_figure(results: VariantResults) -> Figure:
    """Mean error, joint by row of the horizon."""
    mae = results.scores.rows['mae'].T * MILLI
    joints = results.episodes[0].joints
    figure = Figure(figsize=(11, 0.9 + 0.34 * len(joints)), layout='constrained')
    axes = figure.subplots()
    top = max(float(np.nanpercentile(mae, 98)), 1e-6) if np.isfinite(mae).any() else 1.0
    image = axes.imshow(
        mae, aspect='auto', cmap=HEAT, vmin=0, vmax=top, interpolation='nearest', rasterized=True
    )
    axes.set_yticks(range(len(joints)), joints)
    axes.tick_params(axis='y', labelcolor=INK, length=0)
    axes.set_xlabel('row of the horizon')
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, extend='max', pad=0.01, aspect=12)
    bar.set_label('mrad or mm')
    bar.outline.set_visible(False)
    return figure


def error_rows_figure(results: VariantResults) -> Figure:
    """Mean error of all joints by row, with its interval."""
    rows = results.scores.rows
    figure = Figure(figsize=(5.4, 2.9), layout='constrained')
    axes = figure.subplots()
    place = np.arange(len(rows['mae'])) * results.episodes[0].step_ns / 1e9
    axes.fill_between(
        place,
        rows['low'] * MILLI,
        rows['high'] * MILLI,
        color=FAN,
        alpha=0.5,
        linewidth=0,
        label='95 % interval',
    )
    axes.plot(place, rows['mae'].mean(axis=1) * MILLI, color=COMMANDED, label='mean of all joints')
    axes.plot(place, np.median(rows['mae'], axis=1) * MILLI, color=SOFT, linewidth=1.0, label='median joint')
    axes.set_title('Error by how far ahead a row looks')
    axes.set_xlabel('ahead of the observation [s]')
    axes.set_ylabel('mrad or mm')
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def latency_figure(results: VariantResults) -> Figure:
    """Histogram of the inference on this machine, with p50 and p99."""
    figure = Figure(figsize=(5.4, 2.9), layout='constrained')
    axes = figure.subplots()
    values = np.concatenate([np.asarray(t['inference']) for t in results.timings]) * MILLI
    axes.set_title('Inference on this machine')
    axes.set_xlabel('ms')
    axes.set_ylabel('chunks')
    if values.size:
        edge = float(np.percentile(values, 99.5)) * 1.05
        axes.hist(np.minimum(values, edge), bins=40, color=STAGE_COLOURS['denoise'])
        for part, style in ((50, '-'), (99, '--')):
            at = float(np.percentile(values, part))
            axes.axvline(at, color=INK, linewidth=0.9, linestyle=style, label=f'p{part} {at:.1f} ms')
        period = MILLI / results.config.rates.chunk_rate_hz
        if period < 1.6 * edge:
            axes.axvline(period, color=COMMANDED, linewidth=1.2, label=f'chunk period {period:.0f} ms')
        axes.legend()
    return figure


def timeline_figure(results: VariantResults) -> Figure:
    """Where the time of every chunk went, along the first episode."""
    figure = Figure(figsize=(11, 2.5), layout='constrained')
    axes = figure.subplots()
    episode, stages = results.episodes[0], results.timings[0]['stages']
    seconds = (episode.looked_ns - episode.begin_ns) / 1e9
    shown = [s for s in STAGE_COLOURS if s in stages and s not in ('transport', 'wait')]
    title = 'Time of every chunk by stage'
    if episode.chunks and shown:
        values = np.array([stages[stage] for stage in shown]) * MILLI
        step = -(-episode.chunks // TIMELINE_COLUMNS)
        begins = np.arange(0, episode.chunks, step)
        if step > 1:
            title = f'Time of {step} chunks each by stage, on average'
            values = np.add.reduceat(values, begins, axis=1) / np.diff([*begins, episode.chunks])
        width = step * (float(np.median(np.diff(seconds))) * 0.9 if episode.chunks > 1 else 0.1)
        middles, bottom = seconds[begins] + width * (step - 1) / (2 * step), np.zeros(len(begins))
        for stage, column in zip(shown, values, strict=True):
            colour = STAGE_COLOURS[stage]
            axes.bar(middles, column, width, bottom, color=colour, label=stage, linewidth=0, rasterized=True)
            bottom += column
        axes.set_xlim(0, max(episode.duration_s, 1e-3))
        axes.legend(ncols=len(shown), loc='upper right', fontsize=8)
        axes.set_ylim(0, float(np.percentile(bottom, 99.5)) * 1.35)
    axes.set_title(f'{title}, {episode.name}')
    axes.set_xlabel('time in the bag [s]')
    axes.set_ylabel('ms')
    return figure


def moment_figure(episode: Episode, chunk: int, column: int) -> Figure:
    """One joint of one chunk against what was recorded, around its time."""
    figure = Figure(figsize=(3.4, 1.75), layout='constrained')
    axes = figure.subplots()
    times = (row_times(episode)[chunk] - episode.begin_ns) / 1e9
    axes.plot(times, episode.actions[chunk, :, column], color=COMMANDED, label='predicted')
    seconds = (episode.reference_ns - episode.begin_ns) / 1e9
    near = (seconds > times[0] - 0.6) & (seconds < times[-1] + 0.3)
    axes.plot(seconds[near], episode.reference[near, column], color=RECORDED, linewidth=1.1, label='recorded')
    axes.axvline(times[0], color=SOFT, linewidth=0.8, linestyle=':')
    axes.set_title(episode.joints[column], fontsize=9)
    axes.tick_params(labelsize=7.5)
    axes.legend(fontsize=7.5)
    return figure
