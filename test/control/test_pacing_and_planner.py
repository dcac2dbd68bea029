"""Deadlines do not drift, and a prediction becomes a chunk on the time grid."""

from types import SimpleNamespace

import numpy as np
import pytest

from flashrt_ros.control import ChunkError, Planner
from flashrt_ros.control.pacing import Deadlines, PaceMeter, UsualTime
from flashrt_ros.ingest import JointMap, Taken
from flashrt_ros.policy import Observation, Prediction


def test_lateness_never_adds_up():
    deadlines = Deadlines(100, 1000)
    assert [deadlines.meet(now) for now in (1000, 1130, 1201, 1300)] == [(0, 0), (30, 0), (1, 0), (0, 0)]
    assert deadlines.next_ns == 1400


@pytest.mark.parametrize(('late', 'skipped'), [(99, 0), (100, 1), (350, 3)])
def test_deadlines_that_are_past_are_skipped_and_counted(late, skipped):
    deadlines = Deadlines(100, 1000)
    assert deadlines.meet(1000 + late) == (late, skipped)
    assert deadlines.next_ns == 1000 + 100 * (skipped + 1)


def test_a_clock_set_back_begins_a_new_series():
    deadlines = Deadlines(100, 10_000)
    assert deadlines.meet(500) == (0, 0)
    assert deadlines.next_ns == 600


def test_one_slow_time_changes_nothing_about_what_is_usual():
    usual = UsualTime()
    assert usual.ns == 0
    for took_ns in (10, 12, 5000, 11, 13):
        usual.note(took_ns)
    assert usual.ns == 12
    for took_ns in range(100, 120):
        usual.note(took_ns)
    assert 109 <= usual.ns <= 110


def test_pace_of_the_last_deadlines():
    meter = PaceMeter(window=100)
    assert meter.pace() is None
    for k in range(200):
        meter.note(k * 20_000_000, 0 if k < 150 else 1_000_000)
    pace = meter.pace()
    assert pace.rate_hz == pytest.approx(50.0)
    assert (pace.late_p50_s, pace.late_max_s) == pytest.approx((0.0005, 0.001))


class ScriptedPolicy:
    """Answers with given actions."""

    info = SimpleNamespace(name='scripted', horizon=2)

    def __init__(self, actions):
        self.actions = np.asarray(actions, dtype=np.float32)

    def infer(self, observation, noise=None):
        return Prediction(self.actions, {'denoise': 0.5})


TAKEN = Taken(Observation({}, np.zeros(2, np.float32), 'go'), 5_000_000_000, {}, 0.0, 0.0, 0.0, 0.0)
JOINTS = JointMap(('a', 'b'), (100.0, 1.0), (0.0, 0.5))


def test_a_prediction_becomes_a_chunk_in_ros_units_from_the_time_of_observation():
    planner = Planner(ScriptedPolicy([[100.0, 1.0], [200.0, 2.5]]), JOINTS, action_rate_hz=30.0)
    planner.begin_epoch(7)
    first, second = planner.plan(TAKEN), planner.plan(TAKEN)
    np.testing.assert_allclose(first.chunk.actions, [[1.0, 0.5], [2.0, 2.0]])
    assert (first.chunk.observed_ns, first.chunk.start_ns, first.chunk.step_ns) == (5_000_000_000,) * 2 + (
        33_333_333,
    )
    assert [(plan.chunk.epoch, plan.chunk.sequence) for plan in (first, second)] == [(7, 0), (7, 1)]
    assert first.timings == {'denoise': 0.5}
    assert first.inference_s >= 0.0


def test_a_rehearsal_gives_a_chunk_like_those_to_come_and_changes_none_of_them():
    actions = [[100.0, 1.0], [200.0, 2.5]]
    rehearsing, other = (Planner(ScriptedPolicy(actions), JOINTS, action_rate_hz=30.0) for _ in range(2))
    for now_ns in (5_100_000_000, 5_200_000_000):
        like = rehearsing.rehearsed(now_ns)
        plans = [planner.plan(TAKEN) for planner in (rehearsing, other)]
        assert (like.names, like.actions.shape, like.epoch) == (('a', 'b'), (2, 2), 0)
        assert plans[0].chunk.sequence == plans[1].chunk.sequence
        rehearsing.rehearsed(now_ns)
        delays = [p.published(plan, now_ns) for p, plan in zip((rehearsing, other), plans, strict=True)]
        assert delays[0] == delays[1]
        assert rehearsing.delay.foretold == other.delay.foretold


def test_a_reset_begins_an_epoch_that_counts_from_zero():
    planner = Planner(ScriptedPolicy([[0.0, 0.0]]), JOINTS, 30.0)
    planner.plan(TAKEN)
    planner.begin_epoch(8)
    chunk = planner.plan(TAKEN).chunk
    assert (chunk.epoch, chunk.sequence) == (8, 0)


@pytest.mark.parametrize(
    ('actions', 'message'),
    [([[0.0, np.nan]], "row 0 of joint 'b' is nan"), ([[0.0]], '1 columns for 2 joints')],
)
def test_rubbish_from_the_policy_makes_no_chunk_and_no_number(actions, message):
    planner = Planner(ScriptedPolicy(actions), JOINTS, 30.0)
    with pytest.raises(ChunkError, match=message):
        planner.plan(TAKEN)
    assert planner.sequence == 0
