"""Plots of a run: joints with chunk fans, command jitter, latency by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from flashrt_ros.evaluation.metrics import SECOND, Window, jitter
from flashrt_ros.evaluation.run import STAGES, Run, Series
from flashrt_ros.evaluation.verdict import Verdict

INK, SOFT, GRID = '#1f2933', '#7b8794', '#e4e7eb'
COMMANDED, RECORDED, MEASURED, FAN = '#e4572e', '#1f2933', '#9aa5b1', '#f2a07f'
STAGE_COLOURS = dict(
    zip(
        STAGES,
        ('#cbd2d9', '#b0bac5', '#8fb8de', '#5b9bd5', '#2f6fa7', '#e9c46a', '#e4572e', '#b0bac5', '#cbd2d9'),
        strict=True,
    )
)
STYLE: Any = {
    'font.size': 9,
    'font.family': 'DejaVu Sans',
    'text.color': INK,
    'axes.labelcolor': INK,
    'axes.edgecolor': SOFT,
    'axes.titlesize': 10,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': GRID,
    'grid.linewidth': 0.7,
    'axes.axisbelow': True,
    'xtick.color': SOFT,
    'ytick.color': SOFT,
    'legend.frameon': False,
    'savefig.dpi': 150,
}


def write_plots(folder: Path, run: Run, verdict: Verdict, control_hz: float) -> list[Path]:
    """Write joints.png, jitter.png and latency.png into the folder, and return their paths."""
    with mpl.rc_context(STYLE):
        figures = {
            'joints.png': joints_figure(run),
            'jitter.png': jitter_figure(run, control_hz),
            'latency.png': latency_figure(verdict),
        }
        for name, figure in figures.items():
            figure.savefig(folder / name)
    return [folder / name for name in figures]


def joints_figure(run: Run) -> Figure:
    """One panel a joint: commanded against recorded, every chunk as a fan behind."""
    columns = 2
    rows = -(-len(run.joints) // columns)
    figure = Figure(figsize=(11, 1.0 + 1.9 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for column, (name, axes) in enumerate(zip(run.joints, panels, strict=False)):
        draw_joint(axes, run, column)
        axes.set_title(name)
        axes.set_ylabel('rad')
    add_joint_legend(figure, panels[0])
    for axes in figure.axes[-columns:]:
        axes.set_xlabel('time [s]')
    return figure


def draw_joint(axes: Axes, run: Run, column: int) -> None:
    def seconds(times_ns: np.ndarray | int) -> np.ndarray:
        return np.asarray(times_ns - run.ready_ns) / SECOND

    for i, chunk in enumerate(run.chunks):
        times = chunk.start_ns + chunk.step_ns * np.arange(chunk.horizon)
        label = 'chunks' if i == 0 else None
        axes.plot(seconds(times), chunk.actions[:, column], color=FAN, alpha=0.4, linewidth=0.7, label=label)
    for series, colour, width, label in (
        (run.measured, MEASURED, 1.0, 'recorded joint'),
        (run.reference, RECORDED, 1.2, 'recorded command'),
        (run.commanded, COMMANDED, 1.4, 'command of this run'),
    ):
        axes.plot(
            seconds(series.times_ns), series.values[:, column], color=colour, linewidth=width, label=label
        )
    axes.set_xlim(0, max(float(seconds(run.end_ns)), 1e-3))
    # A chunk that is far off must not flatten the curves that were executed.
    axes.set_ylim(*_span(run.measured, run.reference, run.commanded, column=column))


def add_joint_legend(figure: Figure | SubFigure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc='outside upper right', ncols=len(labels))
    for line in legend.get_lines():
        line.set(alpha=1.0, linewidth=1.8)


def _span(*series: Series, column: int) -> tuple[float, float]:
    """Limits of the axis around these curves, with a margin."""
    values = np.concatenate([one.values[:, column] for one in series])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    margin = 0.12 * (high - low) + 0.02
    return low - margin, high + margin


def jitter_figure(run: Run, control_hz: float) -> Figure:
    figure = Figure(figsize=(6.4, 3.2), layout='constrained')
    draw_jitter(figure.subplots(), run, control_hz)
    return figure


def draw_jitter(axes: Axes, run: Run, control_hz: float) -> None:
    """Histogram of how much the intervals between commands differ from the period."""
    values = jitter(Window(run.ready_ns, run.end_ns).within(run.commanded.times_ns), control_hz) * 1e3
    axes.set_title(f'Commands at {control_hz:g} Hz: interval minus {1e3 / control_hz:g} ms')
    axes.set_xlabel('jitter [ms]')
    axes.set_ylabel('commands')
    if values.size == 0:
        return
    edge = max(0.5, float(np.abs(values).max()) * 1.02)
    axes.yaxis.set_major_formatter('{x:g}')
    axes.hist(values, bins=np.linspace(-edge, edge, 81).tolist(), color=COMMANDED, log=True)
    p99 = float(np.percentile(np.abs(values), 99))
    for side in (-p99, p99):
        axes.axvline(side, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
    note = f'p50 {np.percentile(np.abs(values), 50):.3f} ms\np99 {p99:.3f} ms\nn = {values.size}'
    axes.text(0.98, 0.95, note, transform=axes.transAxes, ha='right', va='top', color=INK)


def latency_figure(verdict: Verdict) -> Figure:
    figure = Figure(figsize=(6.4, 3.4), layout='constrained')
    draw_latency(figure.subplots(), verdict)
    return figure


def draw_latency(axes: Axes, verdict: Verdict) -> None:
    """Bars to p50 of every stage, with whiskers to p90 and p99."""
    names = [name for name in STAGES if verdict.stages[name].count]
    axes.set_title('Latency by stage: p50, whiskers to p90 and p99')
    axes.set_xlabel('ms')
    places = range(len(names))
    for place, name in zip(places, names, strict=True):
        summary = verdict.stages[name]
        p50, p90, p99 = (value * 1e3 for value in (summary.p50, summary.p90, summary.p99))
        axes.barh(place, p50, height=0.62, color=STAGE_COLOURS[name])
        axes.plot([p50, p99], [place, place], color=SOFT, linewidth=1.0)
        axes.plot([p90, p99], [place, place], linestyle='none', marker='|', color=INK, markersize=6)
        label = f'{p50:.1f}  (p99 {p99:.1f})'
        axes.annotate(label, (p99, place), xytext=(5, 0), textcoords='offset points', va='center')
    axes.set_yticks(places, names)
    axes.tick_params(axis='y', labelcolor=INK, length=0)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.grid(axis='y', visible=False)
