"""One run on simulated time: planner and executor as in the nodes, every chunk late by the same latency."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flashrt_ros.control import (
    STRATEGIES,
    Executor,
    ExecutorSettings,
    Limits,
    Plan,
    Planner,
    PlannerSettings,
)
from flashrt_ros.control.kinds import ActionKinds
from flashrt_ros.ingest import JointMap, Taken
from flashrt_ros.policy import Policy

SECOND = 1_000_000_000
BEGIN_NS = 1_000 * SECOND
CONTROL_HZ, CHUNK_HZ = 100.0, 4.0
SETTLE_S = 2.0
"""From the start, not judged: ramp and first counts of the delay."""

Observe = Callable[[int], 'Taken | None']
"""Time [ns] -> what the policy sees then; None where there is nothing."""

Reference = Callable[[float], np.ndarray]
"""Seconds from the start -> where the robot should be, float64 [D]."""


@dataclass(frozen=True)
class Figures:
    """seam: how far the command goes where a new chunk takes over, beyond the mean of the ways before and
    after
    it: rad, root mean square and largest, over joints and seams. jerk: root mean square of the third
    difference of the commands, rad/s3. error: of the commands against the reference, rad, root mean
    square. still: part of the time without motion. chunks: accepted.
    """

    strategy: str
    latency_ms: int
    seam_rms: float
    seam_max: float
    jerk_rms: float
    error_rms: float
    still: float
    chunks: int


def simulate(
    strategy: str,
    latency_ms: int,
    policy: Policy,
    observe: Observe,
    reference: Reference,
    joints: JointMap,
    action_rate_hz: float,
    duration_s: float,
    before_plan: Callable[[int], None] = lambda _: None,
) -> Figures:
    """before_plan: called with the time at which row 0 of the next chunk is due [ns]."""
    chosen = STRATEGIES[strategy]
    planner = Planner(
        policy,
        joints,
        action_rate_hz,
        PlannerSettings(strategy=chosen, kinds=ActionKinds.positions(len(joints.names))),
    )
    settings = ExecutorSettings(
        interpolate=True,
        ramp_ns=SECOND // 2,
        hold_ns=5 * SECOND,
        max_age_ns=5 * SECOND,
        safe_action='hold',
        combine=chosen.combine,
    )
    executor = Executor(settings, Limits.none(len(joints.names), 1.0 / CONTROL_HZ))
    period, tick = round(SECOND / CONTROL_HZ), round(SECOND / CHUNK_HZ)
    on_the_way: deque[tuple[int, Plan]] = deque()
    told, takeovers, next_tick = [], [], BEGIN_NS
    for now in range(BEGIN_NS, BEGIN_NS + round(duration_s * SECOND), period):
        if on_the_way and on_the_way[0][0] <= now:
            _, plan = on_the_way.popleft()
            planner.published(plan, now)
            executor.accept(plan.chunk, now, reference(0.0))
            entry = executor.entry
            planner.executing(entry.chunk if entry else None, entry.begin_ns if entry else 0)
            takeovers.append(max(now, entry.begin_ns) if entry else now)
        if now >= next_tick and not on_the_way and planner.due(now):
            taken = observe(now)
            if taken is not None:
                start_ns = taken.stamp_ns
                if chosen.future and executor.entry is not None:
                    start_ns += planner.delay.foretold * planner.step_ns
                before_plan(start_ns)
                on_the_way.append((now + latency_ms * 1_000_000, planner.plan(taken)))
                next_tick = now + tick
        command = executor.command(now)
        if command is not None:
            told.append((now, command))
    return _figures(strategy, latency_ms, told, takeovers, reference, executor.counts.chunks_accepted)


def _figures(
    strategy: str,
    latency_ms: int,
    told: list[tuple[int, np.ndarray]],
    takeovers: list[int],
    reference: Reference,
    chunks: int,
) -> Figures:
    judged = [(now, row) for now, row in told if now > BEGIN_NS + SETTLE_S * SECOND]
    rows = np.array([row for _, row in judged])
    expected = np.array([reference((now - BEGIN_NS) / SECOND) for now, _ in judged])
    ways = np.diff(rows, axis=0)
    # ways[k - 1] leads to the command at k, which is the first of the new chunk.
    first = np.searchsorted([now for now, _ in judged], [at for at in takeovers if at > judged[2][0]])
    first = first[first < len(ways) - 1]
    jumps = np.abs(ways[first - 1] - (ways[first - 2] + ways[first]) / 2)
    speed = np.abs(ways).max(axis=1)
    return Figures(
        strategy=strategy,
        latency_ms=latency_ms,
        seam_rms=float(np.sqrt((jumps**2).mean())),
        seam_max=float(jumps.max()),
        jerk_rms=float(np.sqrt((np.diff(rows, 3, axis=0) ** 2).mean()) * CONTROL_HZ**3),
        error_rms=float(np.sqrt(((rows - expected) ** 2).mean())),
        still=float((speed < 1e-9).mean()),
        chunks=chunks,
    )
