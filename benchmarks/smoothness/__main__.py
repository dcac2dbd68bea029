"""Runs every strategy over the latencies, prints the table, writes plot and figures."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from benchmarks.smoothness.plot import write_plot
from benchmarks.smoothness.simulate import BEGIN_NS, SECOND, Figures, simulate
from benchmarks.smoothness.synthetic import STEP_S, SyntheticPolicy
from flashrt_ros.control import STRATEGIES
from flashrt_ros.ingest import JointMap, Taken
from flashrt_ros.policy import Observation

LATENCIES_MS = (0, 50, 100, 150, 200, 300)
JOINTS = 6
DURATION_S = 62.0

Run = Callable[[str, int], Figures | None]
"""Strategy, latency [ms] -> figures; None where the strategy cannot be tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--episode', action='store_true', help="also the demo's episode and checkpoint")
    parser.add_argument('--latencies', type=int, nargs='+', default=LATENCIES_MS, metavar='MS')
    parser.add_argument('--strategies', nargs='+', default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument('--plot', type=Path, help='write the plot here')
    parser.add_argument('--json', type=Path, help='write the figures here')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {'synthetic': _all(run_synthetic, arguments)}
    if arguments.episode:
        from benchmarks.smoothness.episode import Episode

        results['episode'] = _all(Episode().run, arguments)
    if arguments.json:
        about = {
            'command': 'python -m benchmarks.smoothness' + (' --episode' if arguments.episode else ''),
            'machine': platform.processor() or platform.machine(),
            'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        }
        figures = {name: [asdict(one) for one in found] for name, found in results.items()}
        arguments.json.write_text(json.dumps({'about': about, **figures}, indent=1) + '\n')
    if arguments.plot:
        write_plot(arguments.plot, results)


def _all(run: Run, arguments: argparse.Namespace) -> list[Figures]:
    found = []
    print(
        f'{"":13}{"latency":>8} {"seam rms":>9} {"seam max":>9} {"jerk rms":>9} {"error rms":>9} {"still":>6}'
    )
    for strategy in arguments.strategies:
        for latency in arguments.latencies:
            figures = run(strategy, latency)
            if figures is None:
                continue
            found.append(figures)
            seams = f'{figures.seam_rms * 1e3:6.1f} mrad {figures.seam_max * 1e3:5.0f} mrad'
            rest = f'{figures.jerk_rms:9.0f} {figures.error_rms * 1e3:5.1f} mrad {figures.still:6.1%}'
            print(f'{strategy:13}{latency:5} ms {seams} {rest}', flush=True)
    return found


def path(times: np.ndarray) -> np.ndarray:
    """A smooth path of six joints: two sines each, with periods of 3 to 9 s, up to 0.7 rad."""
    joint = np.arange(JOINTS)
    slow = 0.5 * np.sin(2 * np.pi * times[:, None] / (5.0 + 0.8 * joint) + joint)
    return slow + 0.2 * np.sin(2 * np.pi * times[:, None] / (3.0 + 0.3 * joint) + 2 * joint)


def run_synthetic(strategy: str, latency_ms: int, seed: int = 0) -> Figures:
    """One minute of synthetic chunks."""
    policy = SyntheticPolicy(path, JOINTS, seed)
    joints = JointMap(tuple(f'joint_{i}' for i in range(JOINTS)), (1.0,) * JOINTS, (0.0,) * JOINTS)

    def observe(now_ns: int) -> Taken:
        state = path(np.array([(now_ns - BEGIN_NS) / SECOND]))[0].astype(np.float32)
        return Taken(Observation({}, state, 'follow the path'), now_ns, {}, 0.0, 0.0, 0.0, 0.0)

    def before_plan(start_ns: int) -> None:
        policy.start_s = (start_ns - BEGIN_NS) / SECOND

    return simulate(
        strategy,
        latency_ms,
        policy,
        observe,
        lambda seconds: path(np.array([seconds]))[0],
        joints,
        1.0 / STEP_S,
        DURATION_S,
        before_plan,
    )


if __name__ == '__main__':
    main()
