"""Results of `python -m benchmarks --output FILE` as a table and a plot for the documentation.

usage: python -m benchmarks.render benchmarks/results/NAME.json

Rewrites what stands between the two marks in docs/performance.md, and docs/images/latency.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.machine import ROOT

PAGE, PLOT = ROOT / 'docs/performance.md', ROOT / 'docs/images/latency.png'
BEGIN, END = '<!-- results: python -m benchmarks.render -->', '<!-- end of results -->'
STAGES = {'vision': '#4878a8', 'prefill': '#e49444', 'denoise': '#6a9f58'}
TYPICAL = {'views': 2, 'horizon': 50, 'tokens': 50}
NAMES = {'pi05': 'pi0.5', 'pi0': 'pi0'}

Record = dict[str, Any]


def table(report: dict[str, Any], source: Path) -> str:
    """Markdown: where and when, the engine's records, and the baselines."""
    machine, ceilings = report['machine'], report['ceilings']
    lines = [
        f'{machine["gpu"]}, driver {machine["driver"]}, torch {machine["torch"]}, CUDA {machine["cuda"]}, '
        f'{machine["date"]}, commit {machine["commit"]}. This GPU copies at {ceilings["copy_tb_s"]:.2f} TB/s '
        f'and multiplies at {ceilings["bf16_tflop_s"]:.0f} TFLOP/s in bf16 and '
        f'{ceilings["fp8_tflop_s"]:.0f} in E4M3. All figures: [{source.name}](../{source}).',
        '',
        '| policy | precision | views | horizon | tokens | p50 / p90 / p99 ms | vision | prefill | denoise '
        '| roofline | times |',
        '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    lines += [_row(record) for record in engine_records(report)]
    others = [record for record in report['records'] if record['implementation'] != 'engine']
    if others:
        lines += [
            '',
            '| without the engine (2 views, horizon 50, 50 tokens) | bf16, p50 ms |',
            '| --- | --- |',
        ]
    lines += [f'| {NAMES[r["model"]]}, {r["implementation"]} | {r["p50_ms"]:.1f} |' for r in others]
    return '\n'.join(lines)


def engine_records(report: dict[str, Any]) -> list[Record]:
    return [record for record in report['records'] if record['implementation'] == 'engine']


def _row(r: Record) -> str:
    times = ' / '.join(f'{r[f"p{p}_ms"]:.2f}' for p in (50, 90, 99))
    stages = ' | '.join(f'{r[f"{stage}_ms"]:.2f}' for stage in STAGES)
    return (
        f'| {NAMES[r["model"]]} | {r["precision"]} | {r["views"]} | {r["horizon"]} | {r["tokens"]} | {times} '
        f'| {stages} | {r["roofline_ms"]:.2f} | {r["times_roofline"]:.2f} |'
    )


def plot(report: dict[str, Any], path: Path) -> None:
    """Where the engine's time goes, beside the roofline; and every implementation, if there are others."""
    typical = [r for r in report['records'] if all(r[key] == value for key, value in TYPICAL.items())]
    engine = [r for r in typical if r['implementation'] == 'engine']
    panels = 1 if len(engine) == len(typical) else 2
    figure, axes = plt.subplots(1, panels, figsize=(6.5 * panels, 3.2), layout='constrained', squeeze=False)
    _plot_stages(axes[0, 0], engine)
    if panels == 2:
        _plot_implementations(axes[0, 1], typical)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_stages(axis: Axes, engine: list[Record]) -> None:
    labels, start = [f'{NAMES[r["model"]]} {r["precision"]}' for r in engine], [0.0] * len(engine)
    for stage, colour in STAGES.items():
        widths = [r[f'{stage}_ms'] for r in engine]
        bars = axis.barh(labels, widths, left=start, color=colour, label=stage)
        axis.bar_label(bars, fmt='%.2f', label_type='center', color='white')
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axis.bar_label(bars, [f'{r["p50_ms"]:.2f}' for r in engine], padding=4)
    roofline = [r['roofline_ms'] for r in engine]
    axis.scatter(roofline, labels, marker='|', s=500, color='black', label='roofline')
    axis.set(
        xlabel='ms, medians: each stage, and behind the bar the whole graph',
        title='The engine: 2 views, horizon 50, 50 prompt tokens',
        xlim=(0, 1.15 * max(start)),
    )
    axis.invert_yaxis()
    axis.legend(loc='upper center', bbox_to_anchor=(0.5, -0.22), ncols=4, fontsize=8, markerscale=0.4)


def _plot_implementations(axis: Axes, typical: list[Record]) -> None:
    labels = [f'{NAMES[r["model"]]} {r["implementation"]} {r["precision"]}' for r in typical]
    colours = ['#6a9f58' if r['implementation'] == 'engine' else '#b0b0b0' for r in typical]
    bars = axis.barh(labels, [r['p50_ms'] for r in typical], color=colours)
    axis.bar_label(bars, fmt='%.1f', padding=3)
    axis.set(xscale='log', xlabel='ms, p50 (logarithmic)', title='Beside the plain model')
    axis.margins(x=0.2)
    axis.invert_yaxis()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('results', type=Path)
    source = parser.parse_args().results.resolve()
    report = json.loads(source.read_text())
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f'{before}{BEGIN}\n\n{table(report, source.relative_to(ROOT))}\n\n{END}{after}')
    plot(report, PLOT)


if __name__ == '__main__':
    main()
