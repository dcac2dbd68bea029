"""A tiny policy and a robot's YAML for it."""

import pytest

from evaluation.robots import JOINTS, BagMaker, write_config
from flashrt_ros.models.random import write_random_checkpoint
from flashrt_ros.models.spec import TINY_PI05


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny') / 'tiny'
    return write_random_checkpoint(folder, TINY_PI05, state_dim=len(JOINTS), action_dim=len(JOINTS))


@pytest.fixture(scope='session')
def robot_bag(tmp_path_factory):
    """Two seconds of the robot; not to be changed."""
    return BagMaker().write(tmp_path_factory.mktemp('robot') / 'episode')


@pytest.fixture
def robot(tmp_path, tiny):
    """The robot's YAML."""
    return write_config(tmp_path / 'robot.yaml', tiny)


@pytest.fixture(autouse=True)
def few_resamples(request, monkeypatch):
    """Intervals cost more than tiny policies; only where they are the subject are they drawn in full."""
    if request.module.__name__.split('.')[-1] not in ('test_score', 'test_compare'):
        monkeypatch.setattr('flashrt_ros.evaluation.score.sample.RESAMPLES', 100)
