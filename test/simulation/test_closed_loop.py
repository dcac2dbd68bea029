"""The closed loop: timing and repeatability with a policy that knows the answer, and how results are told."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from flashrt_ros.configuration import load_config, with_values
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.batch.plan import Variant
from flashrt_ros.evaluation.closed_loop.faults import GOOD, CameraFault, parse_fault
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import TINY_PI05
from flashrt_ros.policy import PolicyInfo, Prediction

SMALL_FRAMES = replace(TINY_PI05, vision=replace(TINY_PI05.vision, image_size=28))


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp('tiny') / 'tiny', SMALL_FRAMES)


@pytest.fixture
def config(checkpoint):
    loaded = load_config('config/so101_simulation.yaml')
    return with_values(loaded, {'policy.checkpoint': str(checkpoint)}, 'test')


class Oracle:
    """A policy that plans with the scripted expert in a copy of the world: only the pipeline can fail."""

    def __init__(self, world):
        from flashrt_ros.simulation.world import World
        from training.expert import Expert

        self.world, self.copy = world, World(world.scene)
        self.expert = Expert(self.copy)
        self.info = PolicyInfo('oracle', 'pi05', ('base_0_rgb',), 6, 6, 24, 10, 'cpu', 'fp32', 0)
        self.observations = []

    def infer(self, observation, noise=None, guidance=None):
        import mujoco

        from training.expert import tick

        self.observations.append(observation)
        mujoco.mj_copyData(self.copy.data, self.world.scene.physics, self.world.data)
        self.copy.task.goal = self.world.task.goal
        rows = [self.world.data.ctrl.copy()]
        for _ in range(self.info.horizon - 1):
            rows.append(self.expert.command(rows[-1]))
            tick(self.copy, rows[-2], rows[-1])
        return Prediction(np.array(rows, np.float32), {})

    def reseed(self, seed):
        pass


@pytest.fixture
def worker(so101_scene, cameras):
    from flashrt_ros.evaluation.closed_loop.run import Worker
    from flashrt_ros.simulation.world import World

    made = Worker()
    made._world, made._cameras = World(so101_scene), cameras
    made.oracle = Oracle(made._world)
    made._policy_for = lambda trial: made.oracle
    return made


def trial(config, folder, seed=0, latency_s=0.0, fault=GOOD, limit_s=8.0, bag=False):
    from flashrt_ros.evaluation.closed_loop.run import Condition, Trial

    return Trial(Condition('x', Variant('x', config, latency_s), fault), seed, 'so101', limit_s, folder, bag)


@pytest.mark.parametrize(('strategy', 'latency_s'), [('async', 0.0), ('async', 0.1), ('sync', 0.2)])
def test_who_knows_the_answer_succeeds(worker, config, tmp_path, strategy, latency_s):
    config = with_values(config, {'executor.strategy': strategy}, 'test')
    result = worker.run(trial(config, tmp_path, latency_s=latency_s))
    assert result.succeeded
    assert 2.0 < result.seconds < 6.0
    assert result.refused == result.limited == 0
    assert result.distance_m < 0.03


def test_the_same_seed_gives_the_same_episode_and_a_finished_one_is_read_again(worker, config, tmp_path):
    first = worker.run(trial(config, tmp_path / 'a', seed=2))
    again = worker.run(trial(config, tmp_path / 'b', seed=2))
    assert replace(first, inference_ms=0.0) == replace(again, inference_ms=0.0)
    worker.oracle.infer = None
    assert worker.run(trial(config, tmp_path / 'a', seed=2)) == first


def test_lost_and_late_frames_block_and_are_seen_in_the_pictures(worker, config, tmp_path):
    short = {'config': config, 'limit_s': 1.0}
    worker.run(trial(folder=tmp_path / 'good', **short))
    lit = worker.oracle.observations[-1].images['base_0_rgb'].mean()
    worker.run(trial(folder=tmp_path / 'dark', fault=CameraFault(brightness=0.5), **short))
    assert worker.oracle.observations[-1].images['base_0_rgb'].mean() == pytest.approx(lit / 2, rel=0.1)
    gone = worker.run(trial(folder=tmp_path / 'gone', fault=CameraFault(drop=1.0), **short))
    assert (gone.chunks, gone.blocked) == (0, 1.0)
    late = worker.run(trial(folder=tmp_path / 'late', fault=CameraFault(delay_s=2.0), **short))
    assert late.chunks == 0


def test_an_episode_as_a_bag_holds_what_the_robot_said_and_can_be_evaluated(worker, config, tmp_path):
    from flashrt_ros.evaluation.bag import open_bag
    from flashrt_ros.evaluation.replay.feed import find_sources

    wanted = trial(config, tmp_path, limit_s=1.0, bag=True)
    result = worker.run(wanted)
    with open_bag(wanted.bag_path) as bag:
        counts = {topic.name: topic.count for topic in bag.topics.values()}
        assert counts['/joint_states'] == pytest.approx(100, abs=2)
        assert counts['/camera/front/image_raw/compressed'] == pytest.approx(30, abs=2)
        assert counts['/flashrt/action_chunk'] == result.chunks
        assert find_sources(bag, config).reference == '/flashrt/commands'


def test_faults_are_read_and_named():
    assert parse_fault('none') == GOOD
    fault = parse_fault('delay=100+quality=10')
    assert fault == CameraFault(delay_s=0.1, quality=10)
    assert (fault.name, GOOD.name) == ('delay=100,quality=10', '')
    for wrong in ('drop', 'drop=2', 'fog=1', 'tilt=x'):
        with pytest.raises(ConfigError, match='drop=0'):
            parse_fault(wrong)


def test_intervals_and_paired_differences():
    pytest.importorskip('mujoco', reason='needs requirements-sim.txt: make simulation')
    from flashrt_ros.evaluation.closed_loop.run import Result
    from flashrt_ros.evaluation.closed_loop.score import Paired, Summary, mcnemar, wilson

    # Agresti and Coull (1998): 0 of 10 and 9 of 10.
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-3)
    assert (wilson(9, 10).low, wilson(9, 10).high) == pytest.approx((0.5958, 0.9821), abs=1e-3)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)

    def results(successes):
        return [
            Result(seed, ok, 3.0 if ok else None, False, 0.01, 4.0, 20, 0.0, 10.0, 0.01, 50.0, 0, 0)
            for seed, ok in enumerate(successes)
        ]

    one = Summary.of('one', results([True] * 30 + [False] * 10))
    other = Summary.of('other', results([True] * 20 + [False] * 20))
    paired = Paired.of(one, other)
    assert (paired.gained, paired.lost) == (10, 0)
    assert paired.difference.value == pytest.approx(0.25)
    assert 0.08 < paired.difference.low < 0.25 < paired.difference.high < 0.42
    assert one.seconds.value == 3.0


def test_the_command_tries_every_combination_and_reports(so101_scene, cameras, checkpoint, tmp_path):
    command = [
        sys.executable, '-m', 'flashrt_ros.cli', 'simulate', '--config', 'config/so101_simulation.yaml',
        '--checkpoint', str(checkpoint), '--episodes', '2', '--limit', '0.4', '--strategy', 'sync,async',
        '--latency', '0,100', '--out', str(tmp_path), '--at-least', '0.5',
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # a random policy solves nothing
    found = json.loads((tmp_path / 'simulation.json').read_text())
    assert len(found['conditions']) == 4
    assert len(found['pairs']) == 3
    assert all(len(one['results']) == 2 for one in found['conditions'].values())
    assert '<svg' in (tmp_path / 'report.html').read_text()
    assert (tmp_path / 'success.png').exists()
