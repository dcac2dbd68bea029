"""A day of simulated time through planner and motion: nothing grows, nothing is missed."""

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flashrt_ros.control import (
    STRATEGIES,
    ExecutorSettings,
    Limits,
    Phase,
    Planner,
    PlannerSettings,
)
from flashrt_ros.control.motion import Motion
from flashrt_ros.control.supervisor import SafetySettings
from flashrt_ros.ingest import JointMap, Taken
from flashrt_ros.policy import Observation, Prediction

SECOND = 1_000_000_000
BEGIN = 1_700_000_000 * SECOND
CONTROL_HZ, CHUNK_HZ, HORIZON = 20, 2, 30
DAY_S = 24 * 3600


class Wave:
    """Answers with a sine, so that every command differs from the one before."""

    info = SimpleNamespace(
        name='wave', horizon=HORIZON, trained_prefix=0, guidance_refusals={'exact': '', 'identity': ''}
    )
    time_s = 0.0

    def infer(self, observation, noise=None, guidance=None):
        times = self.time_s + np.arange(HORIZON) / 10.0
        return Prediction(np.sin(times)[:, None].astype(np.float32), {})


def run(motion, planner, policy, begin_s, length_s):
    """The streamer's and the policy's clockwork, chunks 200 ms late. Returns commands sent."""
    sent, period = 0, SECOND // CONTROL_HZ
    late, every = CONTROL_HZ // 5, CONTROL_HZ // CHUNK_HZ
    plan = None
    for tick in range(begin_s * CONTROL_HZ, (begin_s + length_s) * CONTROL_HZ):
        now = BEGIN + tick * period
        if tick % every == 0:
            policy.time_s = tick / CONTROL_HZ
            state = np.zeros(1, np.float32)
            plan = planner.plan(Taken(Observation({}, state, 'wave'), now, {}, 0.0, 0.0, 0.0, 0.0))
        if tick % every == late and plan is not None:
            planner.published(plan, now)
            motion.accept(plan.chunk, now, now, np.zeros(1))
            entry = motion.following
            planner.executing(entry and entry.chunk, entry.begin_ns if entry else 0)
        sent += motion.tick(now, now) is not None
    return sent


def population():
    """Python objects alive, and resident memory [KiB]."""
    gc.collect()
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return len(gc.get_objects()), pages * os.sysconf('SC_PAGE_SIZE') // 1024


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('strategy', ['async', 'ensemble', 'rtc_identity'])
def test_a_day_passes_without_growth_or_a_missed_command(strategy):
    settings = ExecutorSettings(
        True, SECOND, SECOND // 2, 2 * SECOND, 'hold', combine=STRATEGIES[strategy].combine
    )
    motion = Motion(settings, SafetySettings(hold_ns=SECOND), Limits.none(1, 1.0 / CONTROL_HZ))
    policy = Wave()
    planner = Planner(
        policy, JointMap(('a',), (1.0,), (0.0,)), 10.0, PlannerSettings(strategy=STRATEGIES[strategy])
    )
    hour = 3600
    sent = run(motion, planner, policy, 0, hour)
    before = population()
    sent += run(motion, planner, policy, hour, DAY_S - hour)
    objects, resident = np.subtract(population(), before)
    ticks, first = DAY_S * CONTROL_HZ, CONTROL_HZ // 5
    print(f'{strategy}: {sent} commands in {ticks} ticks, {objects} objects and {resident} KiB more')
    assert sent == ticks - first
    counts = motion.executor.counts
    assert (counts.underruns, counts.stops, counts.commands_dropped) == (0, 0, 0)
    assert counts.chunks_refused == {}
    assert motion.phase is Phase.RUNNING
    assert objects < 100
    assert resident < 8 * 1024
    assert planner.sequence == DAY_S * CHUNK_HZ
