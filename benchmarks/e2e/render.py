"""The report of a run as a table in Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.e2e.stages import ORDER, PERCENTILES

COLUMNS = [f'p{p:g}' for p in PERCENTILES]
SUMMARY = ('total', 'without graph')


def table(settings: Sequence[dict[str, Any]]) -> str:
    """One block for each setting: stages in rows, percentiles in columns, losses in the heading."""
    return '\n\n'.join(_block(setting) for setting in settings)


def _block(setting: dict[str, Any]) -> str:
    lost = sum(setting['lost'].values())
    lines = [
        f'**{setting["setting"]}**: {setting["measured"]} commands that followed a chunk, '
        f'{lost} of {2 * setting["cameras"]["sent"]} frames lost, {setting["blocked"]} ticks blocked',
        '',
        f'| ms | {" | ".join(COLUMNS)} |',
        f'| --- |{" --- |" * len(COLUMNS)}',
    ]
    found = setting['milliseconds']
    for name in (*ORDER, *SUMMARY):
        if name in found:
            lines.append(f'| {name} | {" | ".join(f"{found[name][column]:.2f}" for column in COLUMNS)} |')
    pace = setting['streamer']
    if pace:
        late = ', '.join(f'{key[8:]} {value:.3g}' for key, value in pace.items())
        lines += ['', f'Streamer: {late} (scheduling: {setting["streamer_scheduling"]})']
    return '\n'.join(lines)


def draw(report: dict[str, Any], path: Path) -> None:
    """Medians of the stages as one bar for each setting, with p99 of the whole as a mark."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    settings = [setting for setting in report['settings'] if setting['milliseconds']]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.55 * len(settings)), layout='constrained')
    colours = [plt.get_cmap('tab20')(index) for index in range(20)]
    for row, setting in enumerate(settings):
        left = 0.0
        for index, stage in enumerate(ORDER):
            width = setting['milliseconds'][stage]['p50']
            label = stage if row == 0 else None
            axes.barh(row, width, left=left, color=colours[index], label=label)
            left += width
        axes.plot(setting['milliseconds']['total']['p99'], row, '|', color='black', markersize=14)
    axes.set_yticks(range(len(settings)), [setting['setting'] for setting in settings], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel('ms from camera stamp to command: medians of the stages; line: p99 of the whole')
    axes.legend(fontsize=7, ncols=6, loc='upper center', bbox_to_anchor=(0.4, -0.25))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)
