"""What a run has seen, as one dictionary for JSON and for the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.soak import process
from benchmarks.soak.robot import CHUNK_HZ, PERIOD_NS, SECOND
from benchmarks.soak.witness import stops_of

if TYPE_CHECKING:
    from benchmarks.soak.run import Soak

SKIPPED = 'command deadlines skipped'


def report(run: Soak) -> dict[str, Any]:
    """of `run`, once it has ended. Times *_s are real, *_h simulated, from when all was in motion."""
    witness, passed_s = run.witness, (run.world.now_ns - run.begin_ns) / SECOND
    own, policy = witness.of('/action_streamer'), witness.of('/policy_node')
    return {
        'ended': run.ended,
        'pressure': (process.pressure() - run.pressed_before_s) / run.took_s,
        'passed_h': passed_s / 3600,
        'took_s': run.took_s,
        'mean_speed': passed_s / run.took_s,
        'clock_lost_s': run.world.lost_s,
        'commands': _commands(run, int(own.get(SKIPPED, 0)) - int(run.before.get(SKIPPED, 0))),
        'holds': _holds(run),
        'chunks': {
            'expected': int(passed_s * CHUNK_HZ),
            'published': witness.chunks - run.chunks_before,
            'lost': witness.chunks_lost,
            'late': witness.chunks_late,
            'skipped': int(policy.get('tick deadlines skipped', 0)),
            'epochs': len(witness.epochs),
        },
        'stops': stops_of(own) - stops_of(run.before),
        'stops_before': stops_of(run.before),
        'events': [{'at_h': _hours(run, at), 'what': what} for at, what in witness.events],
        'phases': dict(witness.states),
        'said': dict(witness.said),
        'streamer': own,
        'policy': policy,
        'processes': {name: {'hours': run.hours, **series} for name, series in run.series.items()},
    }


def _commands(run: Soak, skipped: int) -> dict[str, Any]:
    grid = run.grid
    expected = grid.expected(run.world.now_ns)
    return {
        'period_s': PERIOD_NS / SECOND,
        'expected': expected,
        'published': grid.count,
        'missed': expected - grid.count + grid.duplicates,
        'duplicates': grid.duplicates,
        'late': grid.late,
        'largest_gap_s': grid.largest / SECOND,
        'skipped': skipped,
        'gaps': [{'at_h': _hours(run, at), 'gap_s': gap / SECOND} for at, gap in grid.gaps],
    }


def _holds(run: Soak) -> dict[str, Any]:
    world = run.world
    return {
        'count': world.held,
        'busy': world.held_busy,
        'total_s': world.held_s,
        'longest_s': world.longest_s,
        'first': [{**vars(hold), 'at_h': _hours(run, hold.at_ns)} for hold in world.holds],
    }


def _hours(run: Soak, at_ns: int) -> float:
    return (at_ns - run.begin_ns) / SECOND / 3600
