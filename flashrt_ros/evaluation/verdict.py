"""Was the run good enough? Every rate against the one that was asked for, and where the time went.

`judge` turns a Run into a Verdict: numbers by name, and the failures in words, each with its reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.evaluation.metrics import SECOND, Rate, Summary, Window, jitter, lateness
from flashrt_ros.evaluation.run import STAGES, Run

TOLERANCE = 0.10
"""The part of a rate that may be missing."""

START_S = 1.0
"""What the first chunk and the first command may take on top of a chunk period."""

COUNTERS = (
    'chunks',
    'deadline_misses',
    'ticks_blocked',
    'inputs_rejected',
    'inferences_failed',
    'frames_unused',
)
"""Counters of InferenceStats, all since the node was configured."""

STREAMER, STREAMER_COUNTERS = 'action_streamer', ('underruns', 'stops', 'step_clamps', 'position_clamps')
"""The end of the streamer's status name in /diagnostics, and counters that it reports there."""


@dataclass(frozen=True)
class Verdict:
    """rates: stream -> Rate. stages, ages: name -> Summary of seconds. counts: counter -> value at the end.

    latency: sensor stamp to chunk. skew: between the inputs' stamps. jitter, lateness: of the commands.
    tracking: rad or m, by joint, how far the commands were from the recorded ones at the same time.
    counts: since the node was configured. blocked: input -> ticks refused because of it, in the window only.
    failures: why the run is not good enough; empty if it is.
    """

    window_s: float
    rates: dict[str, Rate]
    stages: dict[str, Summary]
    inference: Summary
    latency: Summary
    ages: dict[str, Summary]
    skew: Summary
    jitter: Summary
    lateness: Summary
    tracking: dict[str, Summary]
    counts: dict[str, int]
    blocked: dict[str, int]
    last_blocked: str
    failures: list[str]

    @property
    def passed(self) -> bool:
        return not self.failures


def judge(
    run: Run, config: RobotConfig, inputs_hz: dict[str, float], tolerance: float = TOLERANCE
) -> Verdict:
    """inputs_hz: input name -> the rate at which it was recorded.

    Inputs and chunks are judged from the first chunk to the last input, commands from the first command. Both
    may take `START_S` and a chunk period from when every input is there; after that, missing is missing.
    """
    control_hz, allowance = config.rates.control_rate_hz, START_S + 1 / config.rates.chunk_rate_hz
    window = _window(run, run.chunks_ns, allowance)
    moving = _window(run, run.commanded.times_ns, allowance)
    rates = {name: Rate.of(run.inputs_ns[name], hz, window) for name, hz in inputs_hz.items()}
    rates['chunks'] = Rate.of(run.chunks_ns, config.rates.chunk_rate_hz, window)
    rates['commands'] = Rate.of(run.commanded.times_ns, control_hz, moving)
    sent = moving.within(run.commanded.times_ns)
    judged = [
        stats for time_ns, stats in zip(run.stats_ns, run.stats, strict=True) if time_ns >= window.begin_ns
    ]
    done = [stats for stats in judged if not stats.blocked]
    blocked = [stats.blocked for stats in (judged if done else run.stats) if stats.blocked]
    names = list(done[0].inputs) if done else []
    verdict = Verdict(
        window_s=window.length,
        rates=rates,
        stages={stage: Summary.of(getattr(stats, stage) for stats in done) for stage in STAGES},
        inference=Summary.of(stats.inference for stats in done),
        latency=Summary.of(stats.total for stats in done),
        ages={name: Summary.of(stats.ages[i] for stats in done) for i, name in enumerate(names)},
        skew=Summary.of(stats.skew for stats in done),
        jitter=Summary.of(np.abs(jitter(sent, control_hz))),
        lateness=Summary.of(lateness(sent, control_hz)),
        tracking=_tracking(run, moving),
        counts=_counts(run),
        blocked=dict(Counter(reason.partition(':')[0] for reason in blocked)),
        last_blocked=blocked[-1] if blocked else '',
        failures=[],
    )
    verdict.failures.extend(_failures(verdict, config, tolerance))
    return verdict


def _window(run: Run, times_ns: np.ndarray, allowance: float) -> Window:
    """From the first event, at the latest `allowance` seconds after the inputs, to the last input."""
    latest = run.ready_ns + round(allowance * SECOND)
    begin = min(int(times_ns[0]), latest) if times_ns.size else latest
    return Window(begin, max(begin, run.end_ns))


def _counts(run: Run) -> dict[str, int]:
    """The policy's counters as they were at the end, and the streamer's as it last reported them."""
    counts = {name: int(getattr(run.stats[-1], name)) if run.stats else 0 for name in COUNTERS}
    reported = next((values for name, values in run.status.items() if name.endswith(STREAMER)), {})
    return counts | {name: int(reported[name]) for name in STREAMER_COUNTERS if name in reported}


def _tracking(run: Run, window: Window) -> dict[str, Summary]:
    """How far each command was from what the recorded controller had last commanded by then."""
    inside = (run.commanded.times_ns >= window.begin_ns) & (run.commanded.times_ns <= window.end_ns)
    if not run.reference.times_ns.size or not inside.any():
        return {}
    rows = np.searchsorted(run.reference.times_ns, run.commanded.times_ns[inside], side='right') - 1
    errors = np.abs(run.commanded.values[inside] - run.reference.values[np.maximum(rows, 0)])
    return {joint: Summary.of(errors[:, column]) for column, joint in enumerate(run.joints)}


def _failures(verdict: Verdict, config: RobotConfig, tolerance: float) -> list[str]:
    if not verdict.counts['chunks']:
        return [f'no chunk was published: {_blame_inputs(verdict)}']
    reasons = {'chunks': _blame_chunks(verdict, config), 'commands': _blame_commands(verdict)}
    return [
        f'{name}: {rate.achieved_hz:.2f} Hz instead of {rate.wanted_hz:g} Hz ({rate.shortfall:.0%} missing): '
        + reasons.get(name, 'its sender was late, or messages were lost on the way')
        for name, rate in verdict.rates.items()
        if rate.shortfall > tolerance
    ]


def _blame_chunks(verdict: Verdict, config: RobotConfig) -> str:
    period = 1 / config.rates.chunk_rate_hz
    slow = verdict.inference.p50 > period
    if slow or verdict.counts['deadline_misses'] > verdict.counts['ticks_blocked']:
        p50, p90 = verdict.inference.p50 * 1e3, verdict.inference.p90 * 1e3
        return (
            f'an inference takes {p50:.0f} ms (p90 {p90:.0f} ms) and the period is {period * 1e3:.0f} ms; '
            'lower rates.chunk_rate_hz or free the machine'
        )
    return _blame_inputs(verdict)


def _blame_inputs(verdict: Verdict) -> str:
    if not verdict.blocked:
        return 'no inference was even refused; see the log of policy_node'
    return f'{sum(verdict.blocked.values())} ticks were blocked, the last because of {verdict.last_blocked}'


def _blame_commands(verdict: Verdict) -> str:
    gap = verdict.rates['commands'].largest_gap
    return f'the longest time without one was {gap * 1e3:.0f} ms; see the log of action_streamer'
