"""`flashrt tune`: what is tried, what the score says, and a best configuration that is one."""

import json
from dataclasses import replace

import pytest
import yaml

from evaluation.robots import BagMaker, write_config
from evaluation.test_score import make_episode
from flashrt_ros.cli.main import main
from flashrt_ros.configuration import load_config
from flashrt_ros.evaluation.score.scores import score
from flashrt_ros.evaluation.tuning import Trial, best_of, merged, rates_to_try, refinements, score_of


def test_the_configuration_as_given_has_a_score_of_one():
    episode = make_episode()
    own = score([replace(episode, commands=episode.commands + 0.01)])
    assert own.metrics['silent.all.mean'].value == 0
    total, figures = score_of(own, own)
    assert total == pytest.approx(1.0)
    assert figures['command_error.all.mae'] == pytest.approx(0.01)


def test_half_the_error_is_better_and_silence_is_worse():
    episode = make_episode()
    own = score([replace(episode, commands=episode.commands + 0.02)])
    better = score([replace(episode, commands=episode.commands + 0.01)])
    assert score_of(better, own)[0] == pytest.approx(0.7, abs=0.01)
    half = len(episode.commands) // 2
    silent = replace(episode, commands=episode.commands[:half] + 0.02, commands_ns=episode.commands_ns[:half])
    found = score([replace(silent, clamps=episode.clamps[:half], seams=episode.seams[episode.seams < half])])
    assert found.metrics['silent.all.mean'].value == pytest.approx(0.5, abs=0.02)
    assert score_of(found, own)[0] > 3


def test_only_rates_that_the_machine_keeps_are_tried(robot):
    config = load_config(robot)
    rates = rates_to_try(config, horizon=20, latency_s=0.15)
    assert rates
    assert all(1.0 < rate <= 1 / 0.15 for rate in rates)
    assert config.rates.chunk_rate_hz not in rates
    assert max(rates_to_try(config, horizon=20, latency_s=0.001)) == 50.0


def test_refinements_are_of_keys_that_exist(robot):
    assert ('executor.interpolation', 'step') in refinements(load_config(robot), 20)


def test_the_best_has_the_lowest_score_and_failures_have_none():
    trials = [Trial('a', {}, 1.0), Trial('b', {}, None, 'it cannot'), Trial('c', {}, 0.5)]
    assert best_of(trials).name == 'c'
    assert merged({'rates': {'x': 1, 'y': 2}}, {'rates.x': 3, 'executor.z': 4}) == {
        'rates': {'x': 3, 'y': 2},
        'executor': {'z': 4},
    }


def test_from_the_command_line(tiny, tmp_path, capsys):
    robot = write_config(tmp_path / 'robot.yaml', tiny, rates={'chunk_rate_hz': 2.0})
    bag = BagMaker().write(tmp_path / 'episode')
    words = ['tune', str(bag), '--config', str(robot), '--out', str(tmp_path / 'out'), '--latency', '50']
    assert main([*words, '--rates', '4,10']) == 0
    told = capsys.readouterr().out
    assert 'latency of an inference: 50.0 ms' in told
    found = json.loads((tmp_path / 'out/trials.json').read_text())
    assert found['trials'][0] == found['trials'][0] | {'name': 'as given', 'score': 1.0}
    tried = {trial['changes'].get('rates.chunk_rate_hz') for trial in found['trials']}
    assert {4.0, 10.0} <= tried
    scores = [trial['score'] for trial in found['trials'] if trial['score'] is not None]
    text = (tmp_path / 'out/best.yaml').read_text()
    assert f'# Score {min(scores):.3f}' in text
    best, given = load_config(tmp_path / 'out/best.yaml'), load_config(robot)
    assert best.policy.checkpoint == given.policy.checkpoint
    assert yaml.safe_load(text)['robot'] == yaml.safe_load(robot.read_text())['robot']
