"""Draws the learning curve that `train` has written beside a checkpoint.

python -m training.curve demo/so101_pi05 docs/images/learning_curve.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from flashrt_ros.evaluation.plots import COMMANDED, INK, STYLE


def draw(curve: list[dict[str, float]]) -> Figure:
    """curve: rows of curve.json."""
    figure = Figure(figsize=(9.0, 3.0), layout='constrained')
    left, right = figure.subplots(1, 2)
    minutes = [row['minutes'] for row in curve]
    left.semilogy(minutes, [row['loss'] for row in curve], color=INK, marker='o', markersize=3)
    left.set_title('Flow-matching loss, training')
    checked = [row for row in curve if 'arm_rad' in row]
    for key, label, colour in (('arm_rad', 'arm', COMMANDED), ('gripper_rad', 'gripper', INK)):
        values = [row[key] * 1e3 for row in checked]
        right.plot(
            [row['minutes'] for row in checked], values, color=colour, marker='o', markersize=3, label=label
        )
    right.set_title('Error of held-out chunks, first 12 rows')
    right.set_ylabel('mrad')
    right.set_ylim(bottom=0)
    right.legend()
    for axes in (left, right):
        axes.set_xlabel('minutes')
    return figure


def main() -> None:
    checkpoint, picture = map(Path, sys.argv[1:])
    with mpl.rc_context({**STYLE, 'savefig.facecolor': 'white'}):
        draw(json.loads((checkpoint / 'curve.json').read_text())).savefig(picture)


if __name__ == '__main__':
    main()
