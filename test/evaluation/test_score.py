"""Metrics with known answers, and intervals that hold what they promise."""

from dataclasses import replace

import numpy as np
import pytest

from flashrt_ros.evaluation.replay.episode import Episode, EpisodeError, load_episode, save_episode
from flashrt_ros.evaluation.score.actions import action_errors, disagreement, series_at
from flashrt_ros.evaluation.score.gripper import crossings, gripper_events
from flashrt_ros.evaluation.score.inputs import input_figures
from flashrt_ros.evaluation.score.motion import jerk, seam_jumps
from flashrt_ros.evaluation.score.sample import Resampling, Sample, estimate
from flashrt_ros.evaluation.score.scores import score

S = 10**9


def make_episode(**changes):
    """Ten seconds of two joints at x = t and x = 2 t; chunks every 0.5 s, exactly right."""
    reference_ns = np.arange(0, 10 * S + 1, S // 20)
    commands_ns = np.arange(S, 10 * S, S // 50)
    looked = np.arange(0, 9 * S, S // 2)
    rows = (looked[:, None] + np.arange(20) * (S // 20)) / S

    def line(times_ns):
        seconds = np.asarray(times_ns) / S
        return np.stack([seconds, 2 * seconds], axis=-1)

    episode = Episode(
        name='one',
        joints=('arm', 'gripper'),
        inputs=('front', 'state'),
        begin_ns=0,
        end_ns=10 * S,
        step_ns=S // 20,
        ticks_ns=looked,
        blocked=np.full(len(looked), -1),
        reasons=(),
        looked_ns=looked,
        observed_ns=looked,
        start_ns=looked,
        ready_ns=looked,
        actions=np.stack([rows, 2 * rows], axis=-1),
        ages=np.zeros((len(looked), 2)),
        skew=np.zeros(len(looked)),
        commands_ns=commands_ns,
        commands=line(commands_ns),
        clamps=np.zeros((len(commands_ns), 2), dtype=np.int64),
        seams=np.arange(25, len(commands_ns), 25),
        measured_ns=reference_ns,
        measured=line(reference_ns),
        reference_ns=reference_ns,
        reference=line(reference_ns),
        reference_topic='/commands',
        received_ns={'front': reference_ns, 'state': reference_ns},
        stamps_ns={'front': reference_ns, 'state': reference_ns},
        counts={'commands': len(commands_ns)},
        problems=[],
    )
    return replace(episode, **changes)


def test_a_perfect_policy_has_no_error_anywhere():
    scores = score([make_episode()])
    for name in ('action_error.all.mae', 'command_error.all.rmse', 'consistency.all.mae', 'seam.all.max'):
        assert scores.metrics[name].value == pytest.approx(0, abs=1e-9), name
    assert scores.metrics['blocked.all.mean'].value == 0
    assert scores.rows['mae'].shape == (20, 2)


def test_an_offset_of_one_joint_is_the_error_of_that_joint_alone():
    episode = make_episode()
    scores = score([replace(episode, actions=episode.actions + np.array([0.0, 0.3]))])
    assert scores.metrics['action_error.arm.mae'].value == pytest.approx(0, abs=1e-9)
    assert scores.metrics['action_error.gripper.mae'].value == pytest.approx(0.3)
    assert scores.metrics['action_error.gripper.p90'].value == pytest.approx(0.3)
    assert scores.metrics['action_error.all.mae'].value == pytest.approx(0.15)
    assert scores.metrics['action_error.all.rmse'].value == pytest.approx(0.3 / np.sqrt(2))


def test_an_error_that_grows_along_the_horizon_is_shown_row_by_row():
    episode = make_episode()
    growing = np.arange(20)[:, None] * 0.01
    rows = score([replace(episode, actions=episode.actions + growing)]).rows['mae']
    np.testing.assert_allclose(rows, np.repeat(growing, 2, axis=1), atol=1e-9)


def test_nothing_is_known_outside_the_recording_and_in_its_gaps():
    times, values = np.array([0, S, 4 * S, 5 * S]), np.array([[0.0], [1.0], [4.0], [5.0]])
    at = np.array([-1, 0, S // 2, S, 2 * S, 5 * S, 5 * S + 1])
    found = series_at(times, values, at, max_gap_s=1.0)[:, 0]
    np.testing.assert_allclose(found, [np.nan, 0, 0.5, 1, np.nan, 5, np.nan])


def test_rows_beyond_the_recording_do_not_count():
    episode = make_episode()
    late = replace(episode, reference_ns=episode.reference_ns[:100], reference=episode.reference[:100])
    errors = action_errors(late)
    assert np.isnan(errors[-1]).all()
    assert np.isfinite(errors[0]).all()


def test_chunks_that_disagree_are_compared_where_both_have_a_row():
    episode = make_episode()
    actions = episode.actions.copy()
    actions[1::2] += 0.1
    found = disagreement(replace(episode, actions=actions))
    # Ten of twenty rows overlap: a chunk is 1 s long and the next comes after 0.5 s.
    assert np.isfinite(found[0, :10]).all()
    assert np.isnan(found[0, 10:]).all()
    np.testing.assert_allclose(np.abs(found[:, :10]), 0.1)


def test_a_jump_at_a_seam_is_measured_and_one_elsewhere_is_not():
    episode = make_episode()
    commands = episode.commands.copy()
    commands[50:, 0] += 0.2
    numbers, jumps = seam_jumps(replace(episode, commands=commands, seams=np.array([25, 50])))
    assert numbers.tolist() == [25, 50]
    np.testing.assert_allclose(jumps, [[0, 0], [0.2, 0]], atol=1e-9)


def test_jerk_of_a_cubic_is_six():
    times = np.arange(0, 2 * S, S // 100)
    found_at, found = jerk(times, (times / S)[:, None] ** 3)
    np.testing.assert_allclose(found, 6.0, rtol=1e-3)
    assert found_at[0] == times[3]


def test_gripper_events_early_late_missed_and_extra():
    episode = make_episode()
    times = np.arange(0, 10 * S, S // 50)

    def square(*edges):
        return sum((times >= edge * S).astype(float) * (-1) ** i for i, edge in enumerate(edges))

    recorded = np.stack([times * 0.0, square(2, 4, 6)], axis=-1)
    commanded = np.stack([times * 0.0, square(2.3, 3.8, 9.0, 9.5)], axis=-1)
    events = gripper_events(
        replace(episode, reference_ns=times, reference=recorded, commands_ns=times, commands=commanded),
        column=1,
    )
    np.testing.assert_allclose(events.delays, [0.3, -0.2])
    assert (events.missed, events.extra) == (1, 2)


def test_a_gripper_that_trembles_around_the_middle_does_nothing():
    times = np.arange(100)
    values = 0.5 + 0.1 * (-1.0) ** times
    assert crossings(times, values, 0.35, 0.65) == []


def test_gaps_and_stamps_that_go_back_are_counted():
    stamps = np.array([0, 100, 200, 300, 900, 850, 1000]) * S // 1000
    episode = make_episode(
        stamps_ns={'front': stamps, 'state': stamps}, received_ns={'front': stamps, 'state': stamps}
    )
    front = input_figures(episode)['front']
    assert (front.messages, front.gaps, front.back) == (7, 1, 1)
    assert front.longest_gap_s == pytest.approx(0.6)
    assert front.rate_hz == pytest.approx(6.0)


def test_ticks_before_the_first_input_do_not_count_as_blocked():
    episode = make_episode()
    late = {'front': episode.received_ns['front'] + 3 * S, 'state': episode.received_ns['state']}
    blocked = np.full(18, -1)
    blocked[:7] = 0
    scores = score([replace(episode, received_ns=late, blocked=blocked, reasons=('front: missing',))])
    # Six ticks come before 3 s; of the twelve after that, one is blocked.
    assert scores.metrics['blocked.all.mean'].value == pytest.approx(1 / 12)


def test_interval_of_one_episode_is_over_its_time_and_of_several_over_episodes():
    one, several = score([make_episode()]), score([make_episode(), make_episode(name='two')])
    assert 'of one episode' in one.over
    assert one.units == 10
    assert (several.over, several.units) == ('episodes', 2)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """95 % intervals of a mean over 25 units of correlated values: the truth, 0, lies inside 88 to 99 %."""
    rng, covered = np.random.default_rng(0), 0
    units = np.repeat(np.arange(25), 20)
    resampling = Resampling.of(25, 'units')
    for _ in range(200):
        values = rng.normal(size=25)[units] + 0.3 * rng.normal(size=500)
        found = estimate(Sample(values, units), 'mean', resampling)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize('statistic', ['mean', 'mae', 'rmse', 'p50', 'p90', 'max'])
def test_interval_contains_its_figure_and_is_the_same_every_time(statistic):
    values = np.random.default_rng(1).normal(size=300)
    sample, resampling = Sample(values, np.arange(300) // 10), Resampling.of(30, 'units')
    found = estimate(sample, statistic, resampling)
    assert found.low <= found.value <= found.high
    assert found == estimate(sample, statistic, Resampling.of(30, 'units'))


def test_one_unit_has_no_interval_and_nothing_has_no_figure():
    one = estimate(Sample(np.ones(5), np.zeros(5, dtype=int)), 'mae', Resampling.of(1, 'units'))
    assert (one.value, one.low, one.high) == (1.0, None, None)
    none = estimate(Sample(np.zeros(0), np.zeros(0, dtype=int)), 'mae', Resampling.of(3, 'units'))
    assert none.value is None


def test_an_episode_comes_back_as_it_was_and_its_file_has_the_same_bytes(tmp_path):
    episode = make_episode(
        problems=[{'topic': '/front', 'what': 'dark', 'first_s': 1.0, 'last_s': 1.0, 'count': 1}]
    )
    for name in ('first', 'second'):
        save_episode(episode, tmp_path / f'{name}.npz')
    assert (tmp_path / 'first.npz').read_bytes() == (tmp_path / 'second.npz').read_bytes()
    again = load_episode(tmp_path / 'first.npz')
    assert again.problems == episode.problems
    assert again.joints == episode.joints
    np.testing.assert_array_equal(again.actions, episode.actions)
    np.testing.assert_array_equal(again.stamps_ns['front'], episode.stamps_ns['front'])


@pytest.mark.parametrize('keep', [0, 10, 0.5, 0.99])
def test_half_an_episode_is_refused(tmp_path, keep):
    path = tmp_path / 'episode.npz'
    save_episode(make_episode(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(EpisodeError, match='cannot be read'):
        load_episode(path)
