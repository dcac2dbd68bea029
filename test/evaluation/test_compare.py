"""`flashrt compare`: verdicts that are known beforehand, and those of real evaluations."""

import json
from dataclasses import replace

import numpy as np
import pytest

from evaluation.robots import JOINTS, BagMaker
from evaluation.test_score import make_episode
from flashrt_ros.cli.main import main
from flashrt_ros.evaluation.batch.summary import VariantResults
from flashrt_ros.evaluation.compare import BETTER, SAME, UNCLEAR, WORSE, CompareError, compare, judge
from flashrt_ros.evaluation.score.scores import score
from flashrt_ros.evaluation.thresholds import Allowance, Thresholds
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import TINY_PI05

ONE = Thresholds(compare={'action_error.all.mae': Allowance(share=0.05)})


def variant(name, noise, seed, episodes=8):
    """Episodes whose chunks are off by noise [rad], each by an amount of its own that A and B share."""
    made = []
    for i in range(episodes):
        episode = make_episode(name=f'e{i}')
        hard = 1 + np.random.default_rng(i).uniform()
        rng = np.random.default_rng(100 * seed + i)
        off = noise * hard * np.abs(1 + 0.1 * rng.normal(size=episode.actions.shape))
        made.append(replace(episode, actions=episode.actions + off))
    return VariantResults(name, None, 0.0, made, [], score(made), {})


@pytest.mark.parametrize(
    ('noise_b', 'verdict'), [(0.010, SAME), (0.0103, SAME), (0.012, WORSE), (0.008, BETTER)]
)
def test_a_difference_is_found_although_episodes_differ_more(noise_b, verdict):
    found = compare(variant('a', 0.010, 1), variant('b', noise_b, 2), ONE)
    assert found.verdict == verdict
    (one,) = found.decisive
    assert one.low < one.value < one.high
    # Episodes differ by a factor of two; the paired interval is far narrower than that.
    assert one.high - one.low < 0.1 * one.of_a


def test_few_bags_that_disagree_are_unclear_and_not_a_verdict():
    a, b = variant('a', 0.010, 1, episodes=3), variant('b', 0.010, 2, episodes=3)
    worse = replace(b.episodes[0], actions=b.episodes[0].actions + 0.02)
    better = replace(b.episodes[1], actions=make_episode().actions)
    b = replace(b, episodes=[worse, better, b.episodes[2]])
    assert compare(a, b, ONE).verdict == UNCLEAR


@pytest.mark.parametrize(
    ('value', 'low', 'high', 'verdict'),
    [
        (2.0, 1.0, 3.0, WORSE),
        (2.0, -1.0, 5.0, UNCLEAR),
        (0.5, 0.2, 0.8, SAME),
        (-1.0, -2.0, -0.5, BETTER),
        (-1.0, -2.0, 0.5, SAME),
        (2.0, None, None, WORSE),
    ],
)
def test_the_rule(value, low, high, verdict):
    assert judge(value, low, high, allowed=1.0) == verdict


def test_chunks_are_compared_moment_by_moment():
    a = variant('a', 0.0, 1, episodes=2)
    b = replace(a, episodes=[replace(e, actions=e.actions + np.array([0.0, 0.01])) for e in a.episodes])
    chunks = compare(a, b, ONE).chunks
    assert chunks['arm.max'].value == pytest.approx(0, abs=1e-12)
    assert chunks['gripper.mae'].value == pytest.approx(0.01)
    assert chunks['all.mae'].value == pytest.approx(0.005)


def test_evaluations_of_other_bags_or_robots_are_not_compared():
    a = variant('a', 0.01, 1, episodes=1)
    other = replace(a, episodes=[replace(a.episodes[0], name='elsewhere')])
    with pytest.raises(CompareError, match='evaluate both on the same bags'.capitalize()):
        compare(a, other, ONE)
    robot = replace(a, episodes=[replace(a.episodes[0], joints=('x', 'y'))])
    with pytest.raises(CompareError, match='A drives arm, gripper, B drives x, y'):
        compare(a, robot, ONE)


def test_two_evaluations_from_the_command_line(robot_bag, robot, tmp_path, capsys):
    words = ['evaluate', str(robot_bag), '--config', str(robot), '--no-report']
    assert main([*words, '--out', str(tmp_path / 'both'), '--latency', '0,200']) == 0
    out = ['--out', str(tmp_path / 'out')]
    assert main(['compare', str(tmp_path / 'both'), str(tmp_path / 'both'), *out]) == 2
    assert 'it has 2 variants' in capsys.readouterr().err
    lockstep, late = (str(tmp_path / 'both' / name) for name in ('robot-lockstep', 'robot-200ms'))
    assert main(['compare', lockstep, lockstep, *out]) == 0
    assert 'SAME: B is as good as A' in capsys.readouterr().out
    limits = tmp_path / 'limits.yaml'
    limits.write_text('compare: {staleness.all.p50: {amount: 0.01}}\n')
    assert main(['compare', lockstep, late, '--thresholds', str(limits), *out]) == 1
    assert 'WORSE: B is worse than A' in capsys.readouterr().out
    assert main(['compare', late, lockstep, '--thresholds', str(limits), *out]) == 0
    found = json.loads((tmp_path / 'out/comparison.json').read_text())
    assert found['verdict'] == 'better'
    page = (tmp_path / 'out/comparison.html').read_text()
    assert '<svg' in page
    assert 'src="http' not in page


def test_two_checkpoints_and_two_precisions(robot, tiny, tmp_path, capsys):
    bag = BagMaker(seconds=1.0).write(tmp_path / 'short')
    width = len(JOINTS)
    other = write_random_checkpoint(tmp_path / 'other', TINY_PI05, seed=9, state_dim=width, action_dim=width)
    words = ['--bag', str(bag), '--config', str(robot), '--out', str(tmp_path / 'out')]
    assert main(['compare', str(tiny), str(other), *words]) in (0, 1)
    assert 'chunks of B against those of A' in capsys.readouterr().out
    assert main(['compare', 'cpu:fp32', 'bf16', *words]) in (0, 1)
    found = json.loads((tmp_path / 'out/comparison.json').read_text())
    # The same noise for both: only rounding differs, by less than the values are large.
    assert 0 < found['chunks_of_b_minus_a']['all.mae']['value'] < 0.1
    assert main(['compare', 'fp99', 'bf16', *words]) == 2
    assert 'neither results, nor a checkpoint, nor a precision' in capsys.readouterr().err
    assert main(['compare', 'cpu:fp32', 'bf16']) == 2
    assert 'add --bag and --config' in capsys.readouterr().err.replace('Add', 'add')
