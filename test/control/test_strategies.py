"""Every way in which chunks may follow each other, on a clock that the test moves."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrt_ros.configuration import load_config
from flashrt_ros.control import (
    STRATEGIES,
    Chunk,
    Combine,
    Phase,
    Planner,
    PlannerSettings,
    Timeline,
)
from flashrt_ros.control.delay import DelayCounter, rows_consumed
from flashrt_ros.ingest import JointMap, Taken
from flashrt_ros.policy import Observation, Prediction

MS = 1_000_000
STEP = 100 * MS
NOW = 1_700_000_000_000_000_000
CONFIG = load_config(Path(__file__).parents[2] / 'config' / 'so101.yaml')
JOINTS = JointMap(('a', 'b'), (10.0, 1.0), (5.0, 0.0))


def chunk(values, start=NOW, sequence=0, step=STEP, observed=None):
    actions = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    names = ('a', 'b')[: actions.shape[1]]
    return Chunk('nano', names, actions, observed or start, start, step, 1, sequence)


def timeline(combine, decay=0.01):
    return Timeline(True, 500 * MS, 5000 * MS, combine, decay)


def targets(line, begin, end, every=50 * MS):
    return [float(line.target(now)[0]) for now in range(begin, end, every)]


class TestSync:
    def test_a_chunk_begins_when_the_one_before_is_over(self):
        line = timeline(Combine.APPEND)
        line.accept(chunk([0.0, 1.0, 2.0]), NOW)
        assert line.accept(chunk([10.0, 11.0], start=NOW + 100 * MS, sequence=1), NOW + 150 * MS) == ''
        assert targets(line, NOW, NOW + 500 * MS, STEP) == [0.0, 1.0, 2.0, 10.0, 11.0]

    def test_a_chunk_that_comes_late_begins_at_row_0_all_the_same(self):
        line = timeline(Combine.APPEND)
        line.accept(chunk([0.0, 1.0]), NOW)
        late = NOW + 350 * MS
        assert line.phase(late) is Phase.HOLDING
        line.accept(chunk([10.0, 11.0], start=NOW + 200 * MS, sequence=1), late)
        assert targets(line, late, late + 200 * MS) == [10.0, 10.5, 11.0, 11.0]

    def test_a_third_chunk_waits_behind_the_second(self):
        line = timeline(Combine.APPEND)
        for sequence in range(3):
            line.accept(chunk([float(sequence)] * 2, sequence=sequence), NOW)
        assert targets(line, NOW, NOW + 600 * MS, STEP) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


class TestEnsemble:
    @pytest.mark.parametrize('decay', [0.01, 0.5, -0.1])
    def test_chunks_are_averaged_with_the_oldest_first(self, decay):
        line = timeline(Combine.AVERAGE, decay)
        values = np.random.default_rng(0).normal(size=(5, 8))
        for sequence, rows in enumerate(values):
            now = NOW + sequence * STEP
            line.accept(chunk(rows, start=now, sequence=sequence), now)
            told = float(line.target(now)[0])
            rows_now = [values[older, sequence - older] for older in range(sequence + 1)]
            weights = [math.exp(-decay * age) for age in range(sequence + 1)]
            assert told == pytest.approx(np.dot(weights, rows_now) / sum(weights))

    def test_chunks_that_are_over_do_not_count(self):
        line = timeline(Combine.AVERAGE)
        line.accept(chunk([1.0, 1.0]), NOW)
        line.accept(chunk([3.0] * 4, start=NOW + STEP, sequence=1), NOW + STEP)
        assert float(line.target(NOW + 150 * MS)[0]) == pytest.approx(2.0, abs=0.02)
        assert targets(line, NOW + 200 * MS, NOW + 500 * MS, STEP) == [3.0, 3.0, 3.0]
        assert line.phase(NOW + 499 * MS) is Phase.RUNNING

    def test_after_all_are_over_the_one_that_lasted_longest_is_held(self):
        line = timeline(Combine.AVERAGE)
        line.accept(chunk([1.0] * 9), NOW)
        line.accept(chunk([3.0], start=NOW, sequence=1), NOW)
        assert float(line.target(NOW + 5000 * MS)[0]) == 1.0
        assert line.end_ns == NOW + 900 * MS

    def test_chunks_do_not_pile_up(self):
        line = timeline(Combine.AVERAGE)
        for sequence in range(1000):
            now = NOW + sequence * STEP
            line.accept(chunk([0.0] * 5, start=now, sequence=sequence), now)
        assert len(line._entries) == 5


def test_a_chunk_that_starts_later_waits_and_the_old_one_goes_on():
    """As vlash sends them: planned for the moment when its rows are due."""
    line = timeline(Combine.REPLACE)
    line.accept(chunk([0.0, 1.0, 2.0, 3.0, 4.0]), NOW)
    new = chunk([10.0, 11.0], start=NOW + 300 * MS, sequence=1, observed=NOW + 100 * MS)
    assert line.accept(new, NOW + 200 * MS) == ''
    assert targets(line, NOW + 200 * MS, NOW + 500 * MS) == [2.0, 2.5, 10.0, 10.5, 11.0, 11.0]
    newer = chunk([20.0], start=NOW + 400 * MS, sequence=2)
    line.accept(newer, NOW + 350 * MS)
    assert targets(line, NOW + 350 * MS, NOW + 450 * MS) == [10.5, 20.0]


def test_chunks_from_before_a_reset_are_dropped_whatever_their_number():
    line = timeline(Combine.REPLACE)
    line.accept(chunk([0.0] * 9), NOW)
    line.clear(NOW + 100 * MS)
    assert line.phase(NOW + 100 * MS) is Phase.IDLE
    in_flight = chunk([1.0] * 9, start=NOW + 50 * MS, sequence=5)
    assert line.accept(in_flight, NOW + 150 * MS) == 'from before the reset'
    assert line.accept(replace(in_flight, observed_ns=NOW + 100 * MS), NOW + 150 * MS) == ''


class TestOnGrid:
    def test_a_grid_shifted_by_whole_rows_gives_the_rows_that_are_left(self):
        rows = np.random.default_rng(0).normal(size=(6, 2))
        left = chunk(rows).on_grid(NOW + 2 * STEP, STEP)
        np.testing.assert_array_equal(left, rows[2:])

    def test_another_grid_gives_points_on_the_lines(self):
        left = chunk([0.0, 1.0, 2.0]).on_grid(NOW + 50 * MS, STEP)
        np.testing.assert_allclose(left[:, 0], [0.5, 1.5])
        np.testing.assert_allclose(chunk([0.0, 1.0]).on_grid(NOW, 25 * MS)[:, 0], [0, 0.25, 0.5, 0.75, 1])

    def test_nothing_is_left_of_a_chunk_that_is_over(self):
        assert len(chunk([0.0, 1.0]).on_grid(NOW + 101 * MS, STEP)) == 0
        assert len(chunk([0.0, 1.0]).on_grid(NOW + 100 * MS, STEP)) == 1

    def test_before_its_start_a_chunk_is_its_first_row(self):
        np.testing.assert_allclose(
            chunk([1.0, 2.0]).on_grid(NOW - 2 * STEP, STEP)[:, 0], [1.0, 1.0, 1.0, 2.0]
        )


class TestDelay:
    @pytest.mark.parametrize(('ms', 'rows'), [(0, 0), (1, 1), (100, 1), (101, 2), (250, 3)])
    def test_rows_that_have_begun_are_consumed(self, ms, rows):
        executing = replace(chunk([0.0] * 20), start_ns=NOW - STEP)
        new = chunk([0.0] * 20, sequence=1)
        assert rows_consumed(executing, new, NOW + ms * MS) == rows

    def test_nothing_is_consumed_before_the_robot_moves_or_after_it_stopped(self):
        new = chunk([0.0] * 20, start=NOW, sequence=1)
        assert rows_consumed(None, new, NOW + 700 * MS) == 0
        ended = replace(chunk([0.0] * 5), start_ns=NOW - 300 * MS)
        assert rows_consumed(ended, new, NOW + 700 * MS) == 2
        begun = replace(chunk([0.0] * 20), start_ns=NOW + 400 * MS)
        assert rows_consumed(begun, new, NOW + 700 * MS) == 3

    def test_never_more_than_the_chunk_has(self):
        assert rows_consumed(chunk([0.0] * 50), chunk([0.0] * 3), NOW + 4000 * MS) == 3

    def test_the_largest_of_the_last_counts_is_foretold(self):
        delay = DelayCounter(window=3)
        assert delay.foretold == 0
        delay.guess(250 * MS, STEP)
        assert delay.foretold == 3
        for rows, foretold in [(1, 1), (4, 4), (2, 4), (2, 4), (2, 2)]:
            delay.count(rows)
            assert delay.foretold == foretold
        delay.guess(900 * MS, STEP)
        assert delay.foretold == 2
        delay.fixed = 7
        assert delay.foretold == 7
        delay.fixed = None
        delay.clear()
        assert delay.foretold == 9


class RecordingPolicy:
    """Remembers what it was asked; answers with rows of its own, in checkpoint units."""

    def __init__(self, rows=20, width=2, refusals=None, trained_prefix=0):
        self.info = SimpleNamespace(
            name='recorder', horizon=rows, trained_prefix=trained_prefix, guidance_refusals=refusals or {}
        )
        self.asked = []
        self.rows, self.width = rows, width

    def infer(self, observation, noise=None, guidance=None):
        self.asked.append((observation, guidance))
        base = 100.0 * len(self.asked)
        actions = base + np.arange(self.rows * self.width, dtype=np.float32).reshape(self.rows, self.width)
        return Prediction(actions, {})


def taken(at, state=(0.0, 0.0)):
    return Taken(Observation({}, np.array(state, np.float32), 'go'), at, {}, 0.0, 0.0, 0.0, 0.0)


def planner(strategy, policy=None, **settings):
    policy = policy or RecordingPolicy()
    settings = PlannerSettings(strategy=STRATEGIES[strategy], **settings)
    return Planner(policy, JOINTS, 1e9 / STEP, settings), policy


class TestPlanner:
    def test_the_first_chunk_has_nothing_to_go_on_from(self):
        plans, policy = planner('rtc')
        plan = plans.plan(taken(NOW))
        assert policy.asked[0][1] is None
        assert (plan.overlap, plans.counts.unguided) == (0, 0)

    @pytest.mark.parametrize(('strategy', 'method'), [('rtc', 'exact'), ('rtc_identity', 'identity')])
    def test_rtc_guides_by_what_is_left_of_the_chunk_in_execution(self, strategy, method):
        plans, policy = planner(strategy, delay_rows=3, clip=7.0)
        first = plans.plan(taken(NOW))
        plans.published(first, NOW + 250 * MS)
        plans.executing(first.chunk, NOW + 250 * MS)  # from standstill row 0 is due on arrival
        plan = plans.plan(taken(NOW + 1050 * MS))
        guidance = policy.asked[1][1]
        left = first.chunk.actions[8:]
        np.testing.assert_allclose(guidance.actions, JOINTS.to_checkpoint(left), rtol=1e-6)
        assert (guidance.method, guidance.clip, plan.delay, plan.overlap) == (method, 7.0, 3, 12)
        assert guidance.weights[:3].tolist() == [1.0] * 3
        assert 0 < guidance.weights[11] < guidance.weights[3] < 1
        assert plan.chunk.prefix == 0

    def test_guidance_may_end_earlier(self):
        plans, policy = planner('rtc_identity', delay_rows=2, guidance_rows=5, schedule='ones')
        plans.executing(chunk(np.zeros((20, 2))), NOW)
        plans.plan(taken(NOW + 2 * STEP))
        assert policy.asked[0][1].weights.tolist() == [1.0] * 5 + [0.0] * 13

    def test_a_prefix_is_as_long_as_the_delay(self):
        plans, policy = planner('rtc_prefix', RecordingPolicy(trained_prefix=6), delay_rows=4)
        plans.executing(chunk(np.arange(40.0).reshape(20, 2)), NOW)
        plan = plans.plan(taken(NOW + 2 * STEP))
        guidance = policy.asked[0][1]
        np.testing.assert_allclose(
            guidance.actions, JOINTS.to_checkpoint(np.arange(40.0).reshape(20, 2)[2:6]), rtol=1e-6
        )
        assert guidance.weights is None
        assert plan.chunk.prefix == 4

    def test_a_prefix_is_cut_to_what_was_trained_and_that_is_counted(self):
        plans, _ = planner('rtc_prefix', RecordingPolicy(trained_prefix=2), delay_rows=4)
        plans.executing(chunk(np.zeros((20, 2))), NOW)
        assert plans.plan(taken(NOW)).chunk.prefix == 2
        assert plans.counts.delays_cut == 1

    def test_without_delay_nothing_is_frozen(self):
        plans, policy = planner('rtc_prefix', RecordingPolicy(trained_prefix=2), delay_rows=0)
        plans.executing(chunk(np.zeros((20, 2))), NOW)
        plans.plan(taken(NOW))
        assert policy.asked[0][1] is None

    def test_a_delay_longer_than_what_is_left_is_counted(self):
        plans, policy = planner('rtc', delay_rows=5)
        plans.executing(chunk(np.zeros((20, 2))), NOW)
        plans.plan(taken(NOW + 17 * STEP))
        assert policy.asked[0][1].weights.tolist() == [1.0] * 3
        assert plans.counts.delays_cut == 1

    def test_where_the_old_chunk_is_over_the_new_one_is_free(self):
        plans, policy = planner('rtc')
        plans.executing(chunk(np.zeros((20, 2))), NOW)
        plans.plan(taken(NOW + 3000 * MS))
        assert policy.asked[0][1] is None
        assert plans.counts.unguided == 1

    def test_what_the_executor_says_counts_more_than_what_was_sent(self):
        plans, policy = planner('rtc')
        plans.published(plans.plan(taken(NOW)), NOW)
        plans.executing(None)
        plans.plan(taken(NOW + STEP))
        assert policy.asked[1][1] is None

    def test_rows_consumed_are_counted_and_foretold(self):
        plans, _ = planner('rtc')
        first = plans.plan(taken(NOW))
        assert plans.published(first, NOW + 700 * MS) == 0
        second = plans.plan(taken(NOW + 1000 * MS))
        assert plans.published(second, NOW + 1250 * MS) == 3
        assert plans.plan(taken(NOW + 1500 * MS)).delay == 3

    def test_a_new_epoch_goes_on_from_nothing(self):
        plans, policy = planner('rtc')
        plans.published(plans.plan(taken(NOW)), NOW)
        plans.begin_epoch(5)
        plan = plans.plan(taken(NOW + STEP))
        assert policy.asked[1][1] is None
        assert (plan.chunk.epoch, plan.chunk.sequence) == (5, 0)

    def test_guidance_settings_change_while_running(self):
        plans, policy = planner('rtc')
        plans.executing(chunk(np.zeros((20, 2))), NOW)
        plans.configure(PlannerSettings(strategy=STRATEGIES['rtc'], clip=2.0, delay_rows=1))
        assert plans.plan(taken(NOW)).delay == 1
        assert policy.asked[0][1].clip == 2.0

    def test_sync_waits_for_the_end_of_the_rows_it_executes(self):
        plans, _ = planner('sync', execution_rows=5)
        assert plans.due(NOW)
        plan = plans.plan(taken(NOW))
        assert plan.chunk.horizon == 5
        plans.published(plan, NOW + 200 * MS)
        assert not plans.due(NOW + 699 * MS)
        assert plans.due(NOW + 700 * MS)

    def test_other_strategies_never_wait(self):
        plans, _ = planner('async')
        plans.published(plans.plan(taken(NOW)), NOW)
        assert plans.due(NOW)

    def test_vlash_plans_from_where_the_robot_will_be(self):
        plans, policy = planner('vlash', delay_rows=3)
        first = plans.plan(taken(NOW, state=(5.0, 1.0)))
        assert first.chunk.start_ns == NOW
        assert policy.asked[0][0].state.tolist() == [5.0, 1.0]
        plans.published(first, NOW)
        second = plans.plan(taken(NOW + 4 * STEP, state=(5.0, 1.0)))
        assert second.chunk.start_ns == NOW + 7 * STEP
        assert second.chunk.observed_ns == NOW + 4 * STEP
        # The state when its first row is due is the action of the row before.
        np.testing.assert_allclose(policy.asked[1][0].state, JOINTS.to_checkpoint(first.chunk.actions[6]))

    def test_vlash_stays_where_it_is_when_nothing_moves(self):
        plans, policy = planner('vlash', delay_rows=3)
        plans.executing(chunk(np.zeros((20, 2))), NOW)
        assert plans.plan(taken(NOW + 3000 * MS, state=(7.0, 1.0))).chunk.start_ns == NOW + 3000 * MS
        assert policy.asked[0][0].state.tolist() == [7.0, 1.0]

    def test_vlash_counts_from_the_observation(self):
        plans, _ = planner('vlash')
        plans.published(plans.plan(taken(NOW)), NOW)
        plan = plans.plan(taken(NOW + 4 * STEP))
        assert plans.published(plan, NOW + 4 * STEP + 250 * MS) == 3


def simulate(strategy, latency_ms, ticks=60):
    """Planner and timeline together, every 400 ms; the commanded rows of the first joint every 20 ms."""

    class Follower(RecordingPolicy):
        """Goes on exactly from what guides it, as an ideal policy would; else starts at a new place."""

        def infer(self, observation, noise=None, guidance=None):
            self.asked.append((observation, guidance))
            rows = np.full((20, 2), 10.0 * (-1) ** len(self.asked), np.float32)
            if guidance is not None:
                rows[: len(guidance.actions)] = guidance.actions
                rows[len(guidance.actions) :] = guidance.actions[-1]
            return Prediction(rows, {})

    plans, _ = planner(strategy, Follower(trained_prefix=8))
    line = timeline(STRATEGIES[strategy].combine)
    pending, told, seams = [], [], []
    for tick in range(ticks * 20):
        now = NOW + tick * 20 * MS
        if tick % 20 == 0 and plans.due(now) and not pending:
            pending.append((now + latency_ms * MS, plans.plan(taken(now))))
        while pending and pending[0][0] <= now:
            _, plan = pending.pop(0)
            plans.published(plan, now)
            before = line.target(now)
            assert line.accept(plan.chunk, now) == ''
            if before is not None:
                seams.append(abs(float(line.target(now)[0] - before[0])))
            plans.executing(line.entry.chunk, line.entry.begin_ns)
        if line.chunk is not None:
            told.append(float(line.target(now)[0]))
    return np.array(told), np.array(seams)


@pytest.mark.parametrize('latency', [0, 90, 150, 240])
def test_what_is_frozen_makes_no_seam(latency):
    for strategy in ('rtc', 'rtc_identity'):
        _, seams = simulate(strategy, latency)
        assert seams.max() < 1e-6, strategy
    _, seams = simulate('async', latency)
    assert seams.max() > 1.0


@given(st.sampled_from(sorted(STRATEGIES)), st.integers(0, 350))
def test_every_strategy_keeps_executing_at_any_latency(strategy, latency):
    told, _ = simulate(strategy, latency, ticks=8)
    assert np.isfinite(told).all()
    assert len(told) > 50
