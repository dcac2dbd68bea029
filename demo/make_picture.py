"""Renders the README's picture from a run's results: what was seen, what was commanded, where the time went.

tools/in_env python -m demo.make_picture demo/out docs/images/demo.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from demo.run import ROOT
from flashrt_ros.configuration import RobotConfig, load_config
from flashrt_ros.evaluation.bag import Bag, open_bag
from flashrt_ros.evaluation.metrics import Window
from flashrt_ros.evaluation.plots import SOFT, STYLE, add_joint_legend, draw_jitter, draw_joint, draw_latency
from flashrt_ros.evaluation.run import Run, read_run
from flashrt_ros.evaluation.verdict import judge
from flashrt_ros.ingest.compressed import decode_compressed
from flashrt_ros.ingest.typed import compressed_frame

MOMENTS = (0.04, 0.19, 0.36, 0.5, 0.64, 0.78, 0.95)
"""Parts of the run at which frames are shown."""

SHOWN_JOINTS = ('shoulder_pan', 'elbow_flex', 'wrist_flex', 'gripper')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='what the demo wrote')
    parser.add_argument('picture', type=Path)
    parser.add_argument('--config', type=Path, default=ROOT / 'config/so101.yaml')
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    with open_bag(arguments.out / 'results') as bag, mpl.rc_context(STYLE):
        figure = picture(bag, config)
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(arguments.picture)
    print(arguments.picture)


def picture(bag: Bag, config: RobotConfig) -> Figure:
    run = read_run(bag, config)
    figure = Figure(figsize=(13, 9.2), layout='constrained')
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(3.1, 3.9, 2.6))
    _draw_frames(top, bag, config, run)
    _draw_joints(middle, run)
    left, right = bottom.subplots(1, 2)
    draw_latency(left, judge(run, config, {}))
    draw_jitter(right, run, config.rates.control_rate_hz)
    return figure


def _draw_frames(figure: SubFigure, bag: Bag, config: RobotConfig, run: Run) -> None:
    window = Window(run.ready_ns, run.end_ns)
    panels = figure.subplots(len(config.cameras), len(MOMENTS), squeeze=False)
    for row, (view, camera) in zip(panels, config.cameras.items(), strict=True):
        messages = list(bag.messages(camera.topic))
        times = np.array([time_ns for time_ns, _ in messages])
        for axes, moment in zip(row, MOMENTS, strict=True):
            wanted = window.begin_ns + moment * (window.end_ns - window.begin_ns)
            nearest = int(np.abs(times - wanted).argmin())
            axes.imshow(decode_compressed(compressed_frame(messages[nearest][1]), view))
            axes.set_axis_off()
            label = f'{moment * window.length:.1f} s'
            axes.text(0.03, 0.05, label, transform=axes.transAxes, color='white', fontsize=8)
        row[0].set_title(view, color=SOFT, fontsize=9)


def _draw_joints(figure: SubFigure, run: Run) -> None:
    panels: list[Axes] = list(figure.subplots(2, 2, sharex=True).flat)
    for name, axes in zip(SHOWN_JOINTS, panels, strict=True):
        draw_joint(axes, run, run.joints.index(name))
        axes.set_title(f'{name} [rad]')
    for axes in panels[2:]:
        axes.set_xlabel('time [s]')
    add_joint_legend(figure, panels[0])


if __name__ == '__main__':
    main()
