"""The parts that let a replay run ahead: threads that hand on items, and pictures resized beforehand."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from evaluation.robots import write_config
from flashrt_ros.configuration import load_config
from flashrt_ros.errors import BackendError, ObservationError
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.evaluation.replay.ahead import ahead
from flashrt_ros.evaluation.replay.feed import Feed, find_sources
from flashrt_ros.evaluation.replay.play import Player
from flashrt_ros.loading import load_policy, options_of
from flashrt_ros.models.checkpoint import open_checkpoint
from flashrt_ros.policy import Observation


def test_items_come_in_order_and_no_more_than_the_depth_is_made_ahead():
    made = []

    def items():
        for i in range(50):
            made.append(i)
            yield i

    with ahead(items(), depth=3) as taken:
        first = next(taken)
        deadline = time.monotonic() + 5
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        # One in hand, three waiting, one that waits for a place.
        assert len(made) == 5
        assert [first, *taken] == list(range(50))


def test_an_error_comes_where_its_item_would_have():
    def items():
        yield 1
        raise ValueError('broken')

    with ahead(items(), depth=3) as taken:
        assert next(taken) == 1
        with pytest.raises(ValueError, match='broken'):
            next(taken)


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    with ahead(iter(range(10**9)), 2) as numbers, ahead(map(str, numbers), 2) as words:
        assert next(words) == '0'
    assert threading.active_count() == before


@pytest.mark.parametrize('size', [(48, 64), (480, 640), (224, 224), (300, 100)])
def test_pictures_resized_beforehand_change_nothing(robot, size):
    config = load_config(robot)
    processing = open_checkpoint(config.policy.checkpoint, options_of(config)).processing
    rng = np.random.default_rng(0)
    views = {view: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for view in config.cameras}
    observation = Observation(views, np.array([0.1, 0.2, 0.3], dtype=np.float32), 'move')
    small = processing.shrunk(observation)
    assert {image.shape for image in small.images.values()} == {(224, 224, 3)}
    of, to = processing.prepare(observation), processing.prepare(small)
    np.testing.assert_array_equal(of.images.numpy(), to.images.numpy())
    np.testing.assert_array_equal(of.tokens.numpy(), to.tokens.numpy())


class TwoAtATime:
    """The CPU policy, begun as a GPU's is: what it was asked and what it has answered is written down."""

    def __init__(self, policy):
        self.info, self.shrink, self.reseed, self.close = (
            policy.info,
            policy.shrink,
            policy.reseed,
            policy.close,
        )
        self.infer = policy.infer
        self.said = []

    def submit(self, observation):
        number = sum(word == 'begun' for word, _ in self.said)
        self.said.append(('begun', number))
        if number == 2:
            raise ObservationError('the third', 'observation', 'leave it')
        prediction = self.infer(observation)

        def finish():
            self.said.append(('finished', number))
            if number == 4:
                raise BackendError('the fifth', 'policy', 'leave it')
            return prediction

        return finish


def test_the_next_inference_begins_before_the_one_before_is_over(robot, robot_bag):
    config = load_config(robot)
    policy = load_policy(config.policy.checkpoint, replace(options_of(config), seed=3))
    both = []
    for asked in (policy, TwoAtATime(policy)):
        policy.reseed(3)
        with open_bag(robot_bag) as bag:
            both.append(Player(Feed(bag, find_sources(bag, config)), config, asked, 0.1).play('replay'))
    plain, pipelined = both
    said = asked.said
    assert said.index(('begun', 1)) < said.index(('finished', 0)) < said.index(('begun', 3))
    assert [number for word, number in said if word == 'finished'] == [
        number for word, number in said if word == 'begun' and number != 2
    ]
    assert list(plain.looked_ns[[0, 1, 3]]) == list(pipelined.looked_ns[:3])
    np.testing.assert_array_equal(plain.actions[:2], pipelined.actions[:2])
    assert pipelined.counts['inferences_failed'] == 2
    assert {'policy: BackendError', 'policy: ObservationError'} <= set(pipelined.reasons)


class Delays:
    """A listener that keeps what every chunk was foretold."""

    def __init__(self):
        self.rows = []

    def looked(self, looked, plan, ready_ns):
        if plan is not None:
            self.rows.append(plan.delay)

    def commanded(self, time_ns, positions):
        pass


@pytest.mark.parametrize(('latency_s', 'rows'), [(0.3, 6), (0.15, 3)])
def test_how_fast_this_machine_is_shows_in_no_chunk(tmp_path, tiny, robot_bag, latency_s, rows):
    """The first guided chunk is foretold the latency that was given, not what the inference before took."""
    path = write_config(tmp_path / 'guided.yaml', tiny, executor={'strategy': 'rtc_identity'})
    config, delays = load_config(path), Delays()
    policy = load_policy(config.policy.checkpoint, options_of(config))
    with open_bag(robot_bag) as bag:
        Player(Feed(bag, find_sources(bag, config)), config, policy, latency_s, (delays,)).play('replay')
    assert delays.rows[1] == rows
