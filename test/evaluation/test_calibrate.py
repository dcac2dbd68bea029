"""Choosing observations, ranges, and `flashrt calibrate` where there is no GPU and where there is one."""

import json

import numpy as np
import pytest
import torch

from evaluation.robots import BagMaker
from flashrt_ros.cli.main import main
from flashrt_ros.configuration import load_config
from flashrt_ros.engine.calibration.ranges import Ranges
from flashrt_ros.engine.weights.formats import E4M3, HEADROOM
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.diverse import choose_observations, farthest
from flashrt_ros.evaluation.precision import distance, predict


def test_farthest_points_reach_every_corner_before_any_twice():
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], dtype=np.float32)
    points = np.concatenate([corners + 0.1 * rng.normal(size=(4, 2)) for _ in range(25)]).astype(np.float32)
    chosen = farthest(points, 5)
    nearest = {int(np.linalg.norm(corners - points[i], axis=1).argmin()) for i in chosen[:4]}
    assert nearest == {0, 1, 2, 3}
    assert farthest(points, 5) == chosen


def test_observations_come_from_all_bags_and_held_out_ones_are_others(robot, tmp_path):
    bags = [BagMaker(seconds=4.0, seed=i).write(tmp_path / f'bag{i}') for i in range(2)]
    chosen = choose_observations(bags, load_config(robot), {}, count=6, held_out=6)
    assert (len(chosen.calibration), len(chosen.held_out)) == (6, 6)
    assert chosen.moments == 38
    seen = {o.images['base_0_rgb'].tobytes() for o in chosen.calibration}
    assert len(seen) == 6
    assert not seen & {o.images['base_0_rgb'].tobytes() for o in chosen.held_out}


def test_too_short_bags_are_refused(robot_bag, robot):
    with pytest.raises(ConfigError, match='9 moments give 9 observations to calibrate on and 0 to test on'):
        choose_observations([robot_bag], load_config(robot), {}, count=32, held_out=16)


def test_ranges_by_flow_step_and_percentile():
    ranges = Ranges()
    for step, top in enumerate((2.0, 4.0, 1.0)):
        ranges.step = step
        ranges.note('q', torch.cat([torch.full((9999,), 0.5), torch.tensor([-top, 0.0])]))
    ranges.step = None
    ranges.note('vision', torch.tensor([3.0]))
    assert ranges.amax_by_step('q') == [2.0, 4.0, 1.0]
    assert ranges.amax_by_step('vision') == []
    assert ranges.amax('q') == 4.0
    # All but one of ten thousand values are 0.5.
    assert 0.5 <= ranges.percentile('q', 99.9) <= 0.5 * 2 ** (1 / 4)
    assert ranges.percentile('q', 100.0) == 4.0
    assert ranges.scales()['q'] == pytest.approx(4.0 * HEADROOM[E4M3] / 448)
    assert ranges.scales().crests['q'] > 1
    assert ranges.scales('percentile', 99.9)['q'] < ranges.scales()['q'] / 6


def test_an_input_that_is_always_zero_still_has_a_scale():
    ranges = Ranges()
    ranges.note('q', torch.zeros(10))
    assert ranges.scales()['q'] > 0
    assert ranges.scales('percentile')['q'] > 0


def test_distance_of_known_chunks(robot, robot_bag):
    a = np.zeros((4, 10, 3))
    b = a.copy()
    b[..., 1] = 0.01
    found = distance(a, b)
    assert found.mae == pytest.approx([0, 0.01, 0, 0.01 / 3])
    config = load_config(robot)
    observations = choose_observations([robot_bag], config, {}, count=1, held_out=1).held_out
    exact = predict(config, observations, 'cpu', 'fp32')
    assert distance(exact, predict(config, observations, 'cpu', 'fp32')).largest[-1] == 0
    assert distance(exact, predict(config, observations, 'cpu', 'bf16')).largest[-1] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_machine_without_a_gpu_says_so_at_once(robot_bag, robot, capsys):
    assert main(['calibrate', str(robot_bag), '--config', str(robot)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('flashrt calibrate: ')
    assert 'GPU' in error
    assert 'Traceback' not in error


@pytest.mark.gpu
def test_scales_from_a_bag_and_the_accuracy_of_fp8(tmp_path, tiny, capsys):
    from evaluation.robots import write_config

    robot = write_config(tmp_path / 'robot.yaml', tiny, policy={'steps': 2})
    bag = BagMaker(seconds=6.0).write(tmp_path / 'bag')
    words = ['calibrate', str(bag), '--config', str(robot), '--count', '8', '--held-out', '4', '--json']
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found['held_out']) == {'fp8 against bf16', 'fp8 against fp32', 'bf16 against fp32'}
    stored = json.loads((tiny / 'flashrt_calibration.json').read_text())
    assert stored['observations'] == 8
    assert all(len(steps) == 2 for steps in stored['amax_by_flow_step'].values())
    assert all(found['p99.999'][name] <= top * 1.0001 for name, top in found['amax'].items())
    assert found['held_out']['fp8 against fp32']['cosine'] > 0.95
    assert main([*words, '--method', 'percentile', '--percentile', '99.9']) == 0
