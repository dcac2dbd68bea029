"""The demo's episode through the demo's checkpoint, on the bag's time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.smoothness.simulate import BEGIN_NS, SECOND, Figures, simulate
from flashrt_ros.configuration import load_config
from flashrt_ros.control import STRATEGIES
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.ingest import Ingest, Taken
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.loading import options_of
from flashrt_ros.policy import load_policy

ROOT = Path(__file__).resolve().parents[2]


class Episode:
    """Loads bag and checkpoint once. One noise seed for all runs."""

    def __init__(self) -> None:
        self._config = load_config(ROOT / 'config' / 'so101.yaml')
        with open_bag(ROOT / 'demo' / 'episode') as bag:
            topics = {camera.topic: view for view, camera in self._config.cameras.items()}
            topics[self._config.joint_states.topic] = STATE
            self._shift_ns = BEGIN_NS - bag.start_ns
            self._duration_s = bag.duration_s
            self._messages = [
                (record.time_ns, topics[record.topic], bag.decode(record))
                for record in bag.records(list(topics))
            ]
            commands = list(bag.messages('/demo/recorded_commands'))
        self._times = np.array([time_ns - commands[0][0] for time_ns, _ in commands]) / SECOND
        self._rows = np.array([message.points[0].positions for _, message in commands])
        self._first_s = (commands[0][0] + self._shift_ns - BEGIN_NS) / SECOND

    def run(self, strategy: str, latency_ms: int) -> Figures | None:
        """None for a strategy that this checkpoint cannot do."""
        wanted = replace(options_of(self._config), guidance=STRATEGIES[strategy].guidance)
        policy = load_policy(self._config.policy.checkpoint, wanted)
        if policy.info.guidance_refusals.get(STRATEGIES[strategy].guidance, ''):
            return None
        ingest, waiting = Ingest(self._config), list(self._messages)

        def observe(now_ns: int) -> Taken | None:
            bag_ns = now_ns - self._shift_ns
            while waiting and waiting[0][0] <= bag_ns:
                time_ns, name, message = waiting.pop(0)
                ingest.offer(name, message, time_ns)
            outcome = ingest.observe(bag_ns)
            if not isinstance(outcome, Taken):
                return None
            return Taken(**{**vars(outcome), 'stamp_ns': outcome.stamp_ns + self._shift_ns})

        joints, rate_hz = ingest.joints, self._config.rates.action_rate_hz
        return simulate(
            strategy, latency_ms, policy, observe, self._reference, joints, rate_hz, self._duration_s
        )

    def _reference(self, seconds: float) -> np.ndarray:
        """What the robot's own controller commanded in the recording."""
        at = seconds - self._first_s
        return np.array([np.interp(at, self._times, column) for column in self._rows.T])
