"""The figures as one picture: a row for each source of chunks, a column for each measure.

python -m benchmarks.smoothness.plot FIGURES.json PICTURE.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot

from benchmarks.smoothness.simulate import Figures
from flashrt_ros.control import STRATEGIES

MEASURES = {
    'seam_rms': ('jump at the seam, rms [mrad]', 1e3),
    'jerk_rms': ('jerk of the commands, rms [rad/s³]', 1.0),
    'error_rms': ('commands against the reference, rms [mrad]', 1e3),
}


def write_plot(file: Path, results: dict[str, list[Figures]]) -> None:
    figure, axes = pyplot.subplots(
        len(results), len(MEASURES), figsize=(13, 3.9 * len(results)), squeeze=False, layout='constrained'
    )
    for row, (source, figures) in zip(axes, results.items(), strict=True):
        for axis, (measure, (label, scale)) in zip(row, MEASURES.items(), strict=True):
            for strategy in dict.fromkeys(one.strategy for one in figures):
                own = [one for one in figures if one.strategy == strategy]
                axis.plot(
                    [one.latency_ms for one in own],
                    [getattr(one, measure) * scale for one in own],
                    color=f'C{list(STRATEGIES).index(strategy)}',
                    marker='o',
                    markersize=3,
                    label=strategy,
                )
            axis.set_xlabel('latency [ms]')
            axis.set_ylabel(label)
            axis.set_title(source, fontsize=10)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        row[0].legend(fontsize=8)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


if __name__ == '__main__':
    stored = json.loads(Path(sys.argv[1]).read_text())
    sources = {name: [Figures(**one) for one in rows] for name, rows in stored.items() if name != 'about'}
    write_plot(Path(sys.argv[2]), sources)
