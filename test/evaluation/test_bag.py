"""Bags: whole ones of every kind, broken ones, and the one that the demo plays."""

import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from rosbags.rosbag2 import StoragePlugin

from evaluation.bags import BEGIN_NS, STEP_NS, mcap_of, truncate, write_bag
from flashrt_ros.evaluation.bag import BagError, Record, open_bag

EPISODE = Path(__file__).resolve().parents[2] / 'demo/episode'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    # Padding makes several chunks of the file format, of 1 MB each.
    return write_bag(tmp_path_factory.mktemp('bags') / 'whole', count=300, padding=12_000)


@pytest.fixture
def broken(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / 'broken'))


def everything(bag):
    return [(record, bag.decode(record)) for record in bag.records()]


@pytest.mark.parametrize('storage', list(StoragePlugin))
def test_both_storages_give_messages_in_the_order_of_time(tmp_path, storage):
    with open_bag(write_bag(tmp_path / 'bag', storage=storage)) as bag:
        assert {topic.name: topic.count for topic in bag.topics.values()} == {
            '/joint_states': 100,
            '/words': 100,
        }
        assert bag.duration_s == pytest.approx(0.995)
        records = everything(bag)
    assert [record.time_ns for record, _ in records] == [BEGIN_NS + i * STEP_NS // 2 for i in range(200)]
    assert [message.position.tolist() for _, message in records[::2]] == [[i, -i] for i in range(100)]
    assert [message.data for _, message in records[1::2]] == [str(i) for i in range(100)]


def test_one_file_without_metadata(whole):
    with open_bag(mcap_of(whole)) as bag:
        assert len(list(bag.messages('/joint_states'))) == 300


def test_only_the_topics_asked_for(whole):
    with open_bag(whole) as bag:
        assert {record.topic for record in bag.records(['/words'])} == {'/words'}


def test_topic_that_is_not_there(whole):
    with (
        open_bag(whole) as bag,
        pytest.raises(BagError, match=r"no topic '/camera', only /joint_states, /words"),
    ):
        list(bag.records(['/camera']))


def test_path_that_is_not_there(tmp_path):
    with pytest.raises(BagError, match='no such file or directory'):
        open_bag(tmp_path / 'nothing')


def test_directory_without_a_bag(tmp_path):
    with pytest.raises(BagError, match='no rosbag2 that can be read'):
        open_bag(tmp_path)


def test_file_that_is_no_bag(tmp_path):
    path = tmp_path / 'notes.mcap'
    path.write_text('this is not a bag')
    with pytest.raises(BagError, match='nothing in it can be read'):
        open_bag(path, readable_part=True)


@pytest.mark.parametrize('keep', [0.4, 0.6, 0.99])
def test_bag_that_ends_in_the_middle_of_a_message(whole, broken, keep):
    truncate(broken, keep)
    with pytest.raises(
        BagError, match=r'ends in the middle of a record.* only \d+ messages, \d\.\d+ s, from its beginning'
    ):
        open_bag(broken)
    with open_bag(broken, readable_part=True) as bag, open_bag(whole) as original:
        assert 'from its beginning' in str(bag.fault)
        readable, complete = everything(bag), list(original.records())
    # What can be read is the beginning, unchanged, in whole chunks of the file format.
    count = len(readable)
    assert 0.5 * keep * len(complete) < count < len(complete)
    assert [record for record, _ in readable] == complete[:count]


def test_bag_cut_before_the_first_chunk_is_complete(broken):
    truncate(broken, 0.01)
    with pytest.raises(BagError, match='nothing in it can be read'):
        open_bag(broken, readable_part=True)


def test_message_that_does_not_fit_its_definition(whole):
    with open_bag(whole) as bag:
        record = next(bag.records(['/joint_states']))
        with pytest.raises(BagError, match=r'damaged in /joint_states at 0\.000 s'):
            bag.decode(Record(record.topic, record.time_ns, record.data[:20]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_any_damage_gives_messages_or_a_bag_error(small_bytes, tmp_path, place, value, cut):
    data = bytearray(small_bytes)
    index = int(place * len(data))
    data[index] ^= value
    path = tmp_path / 'damaged.mcap'
    path.write_bytes(data[:index] if cut else data)
    for readable_part in (False, True):
        with suppress(BagError), open_bag(path, readable_part) as bag:
            everything(bag)


@pytest.fixture(scope='module')
def small_bytes(tmp_path_factory):
    return mcap_of(write_bag(tmp_path_factory.mktemp('bags') / 'small', count=5)).read_bytes()


def test_episode_is_complete():
    with open_bag(EPISODE) as bag:
        counts = {topic.name: (topic.type, topic.count, topic.reliable) for topic in bag.topics.values()}
        assert bag.fault is None
        duration = bag.duration_s
    assert 12 < duration < 16
    # The wrist camera begins half a period after the front camera.
    assert counts == {
        topic: (kind, pytest.approx(duration * rate_hz, abs=1.1), reliable)
        for topic, kind, rate_hz, reliable in (
            ('/camera/front/image_raw/compressed', 'sensor_msgs/msg/CompressedImage', 30, False),
            ('/camera/wrist/image_raw/compressed', 'sensor_msgs/msg/CompressedImage', 30, False),
            ('/joint_states', 'sensor_msgs/msg/JointState', 60, True),
            ('/demo/recorded_commands', 'trajectory_msgs/msg/JointTrajectory', 60, True),
        )
    }
    assert sum(file.stat().st_size for file in EPISODE.iterdir()) < 6e6


def test_episode_stamps_are_sensor_time():
    with open_bag(EPISODE) as bag:
        for record in bag.records():
            stamp = bag.decode(record).header.stamp
            assert stamp.sec * 10**9 + stamp.nanosec == record.time_ns


@pytest.mark.ros
def test_episode_means_the_same_to_another_reader_and_to_ros():
    """mcap finds the same bytes as rosbags, and ROS's own type support decodes the same values."""
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import JointState

    with open_bag(EPISODE) as bag:
        ours = list(bag.messages('/joint_states'))
    with next(EPISODE.glob('*.mcap')).open('rb') as file:
        theirs = [message for *_, message in make_reader(file).iter_messages(topics=['/joint_states'])]
    assert [message.log_time for message in theirs] == [time_ns for time_ns, _ in ours]
    for message, (_, decoded) in zip(theirs, ours, strict=True):
        expected = deserialize_message(message.data, JointState)
        assert list(expected.name) == decoded.name
        assert list(expected.position) == decoded.position.tolist()
        assert list(expected.velocity) == decoded.velocity.tolist()
        assert expected.header.stamp.nanosec == decoded.header.stamp.nanosec
