"""Any damage to a bag gives observations, or an error that says what is wrong; never a traceback, never no
end."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin

from evaluation.robots import BagMaker, write_config
from flashrt_ros.configuration import load_config
from flashrt_ros.errors import FlashRTError
from flashrt_ros.evaluation.bag import BagError, open_bag
from flashrt_ros.evaluation.inspection import inspect_bag
from flashrt_ros.evaluation.replay.feed import Feed, find_sources
from flashrt_ros.evaluation.replay.watch import Latency, Looked, Watch
from flashrt_ros.ingest import Taken

LIMITS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope='module', params=list(StoragePlugin), ids=lambda storage: storage.value)
def whole(request, tmp_path_factory):
    """The only file of a small bag."""
    folder = BagMaker(seconds=0.5, storage=request.param, size=(16, 16)).write(
        tmp_path_factory.mktemp('small') / 'bag'
    )
    return next(path for path in folder.iterdir() if path.suffix in ('.mcap', '.db3'))


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    return load_config(write_config(tmp_path_factory.mktemp('robot') / 'robot.yaml', '/nowhere'))


def observations(path, config):
    """How many observations come of a bag, and what is said of the rest."""
    with open_bag(path, readable_part=True) as bag:
        feed = Feed(bag, find_sources(bag, config))
        looks = [event for event in Watch(feed, config, Latency(0.0)) if isinstance(event, Looked)]
        assert all(problem.what and problem.count for problem in feed.problems.all())
        return sum(isinstance(look.outcome, Taken) for look in looks), feed.problems.all()


def unexplained(path, config):
    """Look at a damaged bag in both ways; the refusals that lack what, where or a remedy. Anything but a
    refusal is raised."""
    refusals = []
    for look in (observations, lambda path, _: inspect_bag(path)):
        try:
            look(path, config)
        except FlashRTError as error:
            refusals.append(error)
    return [error for error in refusals if not all((error.what, error.where, error.fix))]


@LIMITS
@given(data=st.data())
def test_flipped_bytes(whole, config, tmp_path, data):
    suffix, content = whole.suffix, whole.read_bytes()
    damaged = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        damaged[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / f'bag{suffix}'
    path.write_bytes(damaged)
    assert unexplained(path, config) == []


@pytest.mark.parametrize(
    ('right', 'wrong'),
    [(b'is_bigendian', b'is_bigendiam'), (b'float64[] position', b'float32[] position')],
)
def test_a_definition_that_lost_a_field_of_its_type(whole, config, tmp_path, right, wrong):
    content = whole.read_bytes()
    assert right in content
    path = tmp_path / f'bag{whole.suffix}'
    path.write_bytes(content.replace(right, wrong))
    taken, problems = observations(path, config)
    assert taken == 0
    assert any(f'has no field {right.split()[-1].decode()}' in problem.what for problem in problems)


@LIMITS
@given(keep=st.floats(0, 1, exclude_max=True))
def test_cut_anywhere(whole, config, tmp_path, keep):
    suffix, content = whole.suffix, whole.read_bytes()
    path = tmp_path / f'bag{suffix}'
    path.write_bytes(content[: int(keep * len(content))])
    assert unexplained(path, config) == []


@LIMITS
@given(place=st.floats(0, 1, exclude_max=True), length=st.integers(1, 5000), value=st.integers(0, 255))
def test_overwritten_stretches(whole, config, tmp_path, place, length, value):
    suffix, content = whole.suffix, whole.read_bytes()
    begin = int(place * len(content))
    path = tmp_path / f'bag{suffix}'
    path.write_bytes(
        content[:begin] + bytes([value]) * min(length, len(content) - begin) + content[begin + length :]
    )
    assert unexplained(path, config) == []


@pytest.mark.parametrize(('column', 'value'), [('name', None), ('name', b'/a'), ('type', None), ('type', 7)])
def test_a_topic_that_has_lost_its_name_or_type(tmp_path, column, value):
    folder = BagMaker(seconds=0.5, storage=StoragePlugin.SQLITE3, size=(16, 16)).write(tmp_path / 'bag')
    path = next(folder.glob('*.db3'))
    with closing(sqlite3.connect(path)) as database, database:
        sql = database.execute("SELECT sql FROM sqlite_master WHERE name = 'topics'").fetchone()[0]
        database.execute('PRAGMA writable_schema = 1')
        loose = sql.replace('NOT NULL', '').replace(f'{column} TEXT', column)
        database.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'topics'", (loose,))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f'UPDATE topics SET {column} = ? WHERE id = (SELECT min(id) FROM topics)', (value,))
    with pytest.raises(BagError, match=r'1 of \d topics have no name or type'):
        open_bag(path)
    with open_bag(path, readable_part=True) as bag:
        names = set(bag.topics)
        assert names
        assert len(list(bag.records())) == sum(topic.count for topic in bag.topics.values()) > 0
    found = inspect_bag(path)
    assert set(found['topics']) == names
    assert 'have no name or type' in found['fault']


def test_the_whole_bag_is_read_to_its_end(whole, config, tmp_path):
    suffix, content = whole.suffix, whole.read_bytes()
    path = tmp_path / f'bag{suffix}'
    path.write_bytes(content)
    assert observations(path, config) == (2, [])


@LIMITS
@given(
    changes=st.lists(
        st.sampled_from(
            [
                ('/front', 'width', 0),
                ('/front', 'height', 2**31),
                ('/front', 'step', 1),
                ('/front', 'encoding', '32FC1'),
                ('/wrist', 'data', np.zeros(0, np.uint8)),
                ('/wrist', 'format', ''),
                ('/joint_states', 'position', np.full(3, np.nan)),
                ('/joint_states', 'position', np.zeros(1)),
                ('/joint_states', 'name', ['a', 'a', 'b']),
                ('/commands', 'points', []),
                ('/commands', 'joint_names', []),
            ]
        ),
        min_size=1,
        max_size=3,
    )
)
def test_messages_that_contradict_themselves(config, tmp_path_factory, changes):
    def change(topic):
        def apply(_, message):
            for where, name, value in changes:
                if where == topic:
                    setattr(message, name, value)
            return message

        return apply

    topics = {topic: change(topic) for topic, _, _ in changes}
    bag = BagMaker(seconds=0.5, size=(16, 16), change=topics).write(tmp_path_factory.mktemp('odd') / 'bag')
    _, problems = observations(bag, config)
    # An image format is free text; everything else is noticed and named.
    expected = {topic for topic, name, _ in changes if name != 'format'}
    blocking = [p.topic for p in problems]
    assert not expected or set(blocking) & expected
