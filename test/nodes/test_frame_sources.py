"""Frames over real DDS: both sources give the same, and whatever comes, the node lives on and counts it."""

import array
import itertools
import threading
import time

import numpy as np
import pytest
from rclpy.node import Node
from rclpy.serialization import serialize_message
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, Image

from flashrt_ros.errors import BackendError
from flashrt_ros.ingest.cdr import Repeated
from flashrt_ros.ingest.ring import SLOTS, FrameRing
from flashrt_ros.nodes import fastdds_take, frame_sources, serialized_take
from flashrt_ros.nodes.frame_sources import DirectSource, TypedSource, frame_source
from nodes.graph import wait_for_match, wait_until

both_ways = pytest.mark.parametrize('way', ['fastdds', 'rcl'])
RNG = np.random.default_rng(0)


class Sink:
    """Keeps the latest frame as a stream does, and the bytes of all."""

    def __init__(self):
        self.latest, self.seen, self.drops = None, [], []

    def keep(self, frame):
        self.latest = frame
        self.seen.append((frame.sequence, frame.encoding, frame.width, frame.height, bytes(frame.data[:64])))

    def drop(self, reason):
        self.drops.append(reason)

    @property
    def received(self):
        return len(self.seen) + len(self.drops)


def image(height=48, width=64, encoding='rgb8', padding=3, frame_id='camera', value=None):
    step = width * 3 + padding
    pixels = RNG.integers(0, 256, height * step, dtype=np.uint8)
    if value is not None:
        pixels[:] = value
    message = Image(height=height, width=width, encoding=encoding, step=step)
    message.data = array.array('B', pixels.tobytes())
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = 12, 34
    return message


def big_endian_bytes(message):
    store = get_typestore(Stores.ROS2_KILTED)
    little = store.deserialize_cdr(serialize_message(message), 'sensor_msgs/msg/Image')
    return store.serialize_cdr(little, 'sensor_msgs/msg/Image', little_endian=False)


@pytest.fixture
def camera(graph):
    """Opens a source in a node of its own; publishes to it and waits until every message has come."""
    return Camera(graph)


class Camera:
    def __init__(self, graph):
        self.graph, self.node = graph, graph.add(Node('taker', context=graph.context))
        self.sink, self.publisher = Sink(), None

    def open(self, source='fastdds', transport='raw', **ring):
        kind = Image if transport == 'raw' else CompressedImage
        self.publisher = self.publisher or self.graph.tester.create_publisher(kind, '/camera', 1)
        opened = (
            TypedSource(self.node, '/camera', transport)
            if source == 'typed'
            else DirectSource(self.node, '/camera', transport, FrameRing(**ring), source == 'rcl')
        )
        stop = opened.start(self.sink)
        wait_for_match(self.publisher, next(s for s in self.node.subscriptions if s.topic == '/camera'))
        return stop

    def send(self, *messages):
        for message in messages:
            before = self.sink.received
            self.publisher.publish(message)
            wait_until(lambda before=before: self.sink.received > before, what='the message')


def test_every_source_gives_the_same_frames(camera):
    assert fastdds_take.unavailable() == ''
    direct = [Sink(), Sink()]
    for sink, by_rcl in zip(direct, (False, True), strict=True):
        DirectSource(camera.node, '/camera', 'raw', FrameRing(), by_rcl).start(sink)
    camera.open('typed')
    wait_until(lambda: camera.publisher.get_subscription_count() == 3)
    messages = image(), image(frame_id='', padding=0), image(7, 5, 'bgr8', frame_id='longer name')
    for message, sink in itertools.product(messages, direct):
        camera.send(message)
        wait_until(lambda sink=sink: len(sink.seen) == len(camera.sink.seen))
        one, other = sink.latest, camera.sink.latest
        assert one.data.tobytes() == other.data.tobytes() == message.data.tobytes()
        for name in (
            'encoding',
            'width',
            'height',
            'step',
            'is_bigendian',
            'stamp_ns',
            'frame_id',
            'sequence',
        ):
            assert getattr(one, name) == getattr(other, name)
        assert abs(one.received_ns - other.received_ns) < 1e9
    assert one.stamp_ns == 12_000_000_034


def test_compressed_pictures_come_as_they_were_sent(camera):
    camera.open(transport='compressed')
    camera.send(CompressedImage(format='jpeg', data=b'\xff\xd8\xffabc'))
    assert (camera.sink.latest.data.tobytes(), camera.sink.latest.encoding) == (b'\xff\xd8\xffabc', 'jpeg')


def test_the_resolution_may_change_in_flight(camera):
    camera.open()
    sizes = [(48, 64), (480, 640), (7, 5), (720, 1280), (48, 64)]
    camera.send(*(image(*size) for size in sizes))
    assert [(height, width) for _, _, width, height, _ in camera.sink.seen] == sizes
    assert camera.sink.drops == []


def test_a_frame_of_4k_fits(camera):
    camera.open()
    message = image(2160, 3840)
    camera.send(message)
    assert camera.sink.latest.data.tobytes() == message.data.tobytes()


@both_ways
def test_a_frame_larger_than_the_limit_is_dropped_and_the_next_one_is_fine(camera, way):
    camera.open(way, limit=1 << 20)
    camera.send(image(), image(720, 1280), image())
    assert len(camera.sink.seen) == 2
    assert len(camera.sink.drops) == 1
    assert 'bytes is larger than ingest.max_frame_mib allows' in camera.sink.drops[0]
    assert [sequence for sequence, *_ in camera.sink.seen] == [1, 3]


@both_ways
def test_slots_in_use_are_not_overwritten_and_what_has_no_slot_is_dropped(camera, way):
    camera.open(way)
    held = []
    for value in range(SLOTS):
        camera.send(image(value=value))
        held.append(camera.sink.latest)
    camera.send(image(value=99), image(value=98))
    assert camera.sink.drops == ['every slot is in use'] * 2
    assert [np.unique(frame.data).tolist() for frame in held] == [[value] for value in range(SLOTS)]
    camera.sink.latest = None
    held.clear()
    camera.send(image(value=97))
    assert np.unique(camera.sink.latest.data).tolist() == [97]


def test_a_camera_that_dies_and_returns(camera):
    camera.open()
    camera.send(image(value=1))
    camera.graph.tester.destroy_publisher(camera.publisher)
    camera.publisher = camera.graph.tester.create_publisher(Image, '/camera', 1)
    wait_for_match(camera.publisher, next(s for s in camera.node.subscriptions if s.topic == '/camera'))
    camera.send(image(value=2))
    assert [data[0] for *_, data in camera.sink.seen] == [1, 2]


def test_two_publishers_on_one_topic_both_arrive_and_the_later_wins(camera):
    camera.open()
    other = camera.graph.tester.create_publisher(Image, '/camera', 1)
    wait_until(other.get_subscription_count)
    first = camera.publisher
    for value, publisher in enumerate((first, other, first, other)):
        camera.publisher = publisher
        camera.send(image(value=value))
    assert [data[0] for *_, data in camera.sink.seen] == [0, 1, 2, 3]
    assert camera.sink.latest.data[0] == 3


def test_a_message_like_the_one_before_is_not_read_again(camera, monkeypatch):
    """Fast DDS compares its header on the way; only the stamp is looked at."""
    read, real = [], Repeated.__call__
    monkeypatch.setattr(Repeated, '__call__', lambda self, buffer: read.append(1) or real(self, buffer))
    camera.open()
    for big_endian, first in ((False, 0), (True, 100)):
        for second in range(first, first + 16):
            message = image(value=second)
            message.header.stamp.sec, message.header.stamp.nanosec = second - 50, 999_999_999
            sent = big_endian_bytes(message) if big_endian else serialize_message(message)
            camera.send(bytes(sent))
            frame = camera.sink.latest
            assert frame.stamp_ns == (second - 50) * 10**9 + 999_999_999
            assert (frame.encoding, frame.height, frame.data[0]) == ('rgb8', 48, second)
            assert abs(frame.received_ns - time.time_ns()) < 5e9
            if second == first + 7:
                before = len(read)
        assert len(read) == before
    assert [sequence for sequence, *_ in camera.sink.seen] == list(range(1, 33))


def test_after_stopping_nothing_comes_and_it_can_be_opened_again(camera):
    stop = camera.open()
    camera.send(image(value=1))
    stop()
    camera.publisher.publish(image(value=2))
    time.sleep(0.1)
    assert len(camera.sink.seen) == 1
    camera.open()
    camera.send(image(value=3))
    assert [data[0] for *_, data in camera.sink.seen] == [1, 3]


@both_ways
def test_flipped_truncated_and_padded_messages_over_dds_are_kept_or_counted(camera, way):
    camera.open(way)
    whole = bytearray(serialize_message(image()))
    # The middleware itself needs the encapsulation header to be there.
    for trial in range(150):
        damaged = bytearray(whole)
        for position in RNG.integers(2, 90 if trial % 2 else len(whole), size=RNG.integers(1, 5)):
            damaged[position] = RNG.integers(0, 256)
        damaged = damaged[: len(whole) - RNG.integers(0, len(whole) - 8)] if trial % 3 == 0 else damaged
        camera.send(bytes(damaged + bytes(16) if trial % 5 == 0 else damaged))
    assert camera.sink.received == 150
    assert len(camera.sink.seen) > 20
    assert len(camera.sink.drops) > 20
    assert any('data needs' in reason for reason in camera.sink.drops)
    message = image()
    camera.send(message)
    assert camera.sink.latest.data.tobytes() == message.data.tobytes()


@both_ways
def test_what_is_no_cdr_at_all_is_counted(camera, way):
    camera.open(way)
    camera.send(image(), b'\x00\x77\x00\x00' + bytes(100), bytes(4), image())
    assert (len(camera.sink.seen), len(camera.sink.drops)) == (2, 2)
    assert [sequence for sequence, *_ in camera.sink.seen] == [1, 4]


def test_a_burst_is_taken_whole_though_nobody_takes_meanwhile(camera):
    camera.open()
    camera.send(image(value=0))
    keep, held = camera.sink.keep, threading.Event()
    camera.sink.keep = lambda frame: (keep(frame), held.wait(10.0))
    camera.send(image(value=1))
    for value in (2, 3, 4):
        camera.publisher.publish(image(value=value))
    held.set()
    wait_until(lambda: camera.sink.received == 5, what='the burst')
    assert [data[0] for *_, data in camera.sink.seen] == [0, 1, 2, 3, 4]


@both_ways
def test_frames_that_come_without_a_pause_from_two_sides_are_whole(camera, way):
    camera.open(way)
    keep, torn = camera.sink.keep, []

    def look(frame):
        pixels = np.frombuffer(frame.data, np.uint8)
        if not (pixels == pixels[0]).all() or len(pixels) != frame.height * frame.step:
            torn.append(frame.sequence)
        keep(frame)

    camera.sink.keep = look
    second = camera.graph.tester.create_publisher(Image, '/camera', 1)
    wait_for_match(second, next(s for s in camera.node.subscriptions if s.topic == '/camera'))

    def publish(publisher, values, height):
        for value in values:
            publisher.publish(serialize_message(image(height, 320, value=value)))

    sides = [(camera.publisher, range(100), 240), (second, range(100, 200), 120)]
    threads = [threading.Thread(target=publish, args=side) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    camera.send(image(value=255))
    assert torn == []
    assert len({data[0] for *_, data in camera.sink.seen}) > 20  # of frames that wait the latest win


def test_memory_that_grows_does_not_wait_for_a_publisher_in_the_same_process(camera):
    """Which holds Python's lock while Fast DDS gives its message to the reader, under the reader's lock."""
    camera.open()
    growing = [serialize_message(image(height, 640)) for height in range(10, 250)]
    for message in growing:
        camera.publisher.publish(message)
    camera.send(image(value=7))
    wait_until(lambda: camera.sink.seen[-1][-1][0] == 7)
    assert camera.sink.drops == []


def test_auto_falls_back_with_the_reason_and_direct_refuses(graph, monkeypatch):
    node = graph.add(Node('taker', context=graph.context))
    assert isinstance(frame_source(node, '/camera', 'raw', 'auto', FrameRing), DirectSource)
    assert isinstance(frame_source(node, '/camera', 'raw', 'typed', FrameRing), TypedSource)
    monkeypatch.setattr(frame_sources, 'unavailable', lambda: 'librcl is another one')
    assert isinstance(frame_source(node, '/camera', 'raw', 'auto', FrameRing), TypedSource)
    with pytest.raises(BackendError, match='librcl is another one'):
        frame_source(node, '/camera', 'raw', 'direct', FrameRing)


def test_rcl_takes_where_our_library_cannot_be_used(camera, monkeypatch, capfd):
    monkeypatch.setattr(fastdds_take, '_VERSION', -1)
    monkeypatch.setattr(frame_sources, 'FastDdsTake', None)
    source = frame_source(camera.node, '/camera', 'raw', 'direct', FrameRing)
    assert 'direct, by rcl with a copy more (its library is of another version' in capfd.readouterr().err
    source.start(camera.sink)
    camera.publisher = camera.graph.tester.create_publisher(Image, '/camera', 1)
    wait_until(camera.publisher.get_subscription_count)
    camera.send(image())
    assert len(camera.sink.seen) == 1


def test_another_layout_of_the_librarys_structures_is_recognised(monkeypatch):
    assert serialized_take.unavailable() == ''
    fields = [('length', serialized_take.c_size_t), *serialized_take.SerializedMessage._fields_]
    other = type('SerializedMessage', (serialized_take.ctypes.Structure,), {'_fields_': tuple(fields)})
    monkeypatch.setattr(serialized_take, 'SerializedMessage', other)
    assert 'another layout' in serialized_take.unavailable()
