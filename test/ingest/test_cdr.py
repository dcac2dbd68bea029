"""Serialized camera messages are read where they lie, and never beyond their end."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from flashrt_ros.errors import ObservationError
from flashrt_ros.ingest.cdr import (
    LAYOUTS,
    LONGEST_TEXT,
    MalformedMessage,
    Repeated,
    compressed_layout,
    image_layout,
)
from flashrt_ros.ingest.ring import FrameRing
from flashrt_ros.pictures import decode_image

STORE = get_typestore(Stores.ROS2_KILTED)
TYPES = STORE.types
PLAIN_CDR2 = {True: b'\x00\x07', False: b'\x00\x06'}


def header(stamp=(12, 34), frame_id='camera'):
    time = TYPES['builtin_interfaces/msg/Time'](*stamp)
    return TYPES['std_msgs/msg/Header'](time, frame_id)


def image_bytes(little_endian=True, frame_id='camera', encoding='rgb8', padding=2, big=0):
    """A picture of 5 x 3 pixels whose rows have so many bytes behind them."""
    step = 15 + padding
    data = np.arange(3 * step, dtype=np.uint8)
    message = TYPES['sensor_msgs/msg/Image'](header(frame_id=frame_id), 3, 5, encoding, big, step, data)
    return bytes(STORE.serialize_cdr(message, message.__msgtype__, little_endian=little_endian)), data


def compressed_message(little_endian=True, text='jpeg'):
    data = np.arange(99, dtype=np.uint8)
    message = TYPES['sensor_msgs/msg/CompressedImage'](header(), text, data)
    return bytes(STORE.serialize_cdr(message, message.__msgtype__, little_endian=little_endian)), data


# Every length of a text shifts what follows by another amount.
@given(
    little_endian=st.booleans(),
    frame_id=st.text(st.characters(codec='ascii', exclude_characters='\0'), max_size=9),
    encoding=st.sampled_from(['rgb8', 'mono8', 'bayer_rggb8', '']),
    padding=st.integers(0, 9),
    version_2=st.booleans(),
    big=st.booleans(),
)
def test_an_image_is_found_in_both_byte_orders_at_every_alignment(
    little_endian, frame_id, encoding, padding, version_2, big
):
    message, data = image_bytes(little_endian, frame_id, encoding, padding, int(big))
    if version_2:
        message = PLAIN_CDR2[little_endian] + message[2:]
    layout = image_layout(message)
    assert message[layout.offset : layout.offset + layout.size] == data.tobytes()
    assert layout.stamp_ns == 12_000_000_034
    assert (layout.frame_id, layout.encoding, layout.is_bigendian) == (frame_id, encoding, big)
    assert (layout.width, layout.height, layout.step) == (5, 3, 15 + padding)


@given(little_endian=st.booleans(), text=st.text(st.characters(codec='ascii', exclude_characters='\0')))
def test_a_compressed_image_is_found(little_endian, text):
    message, data = compressed_message(little_endian, text)
    layout = compressed_layout(message)
    assert message[layout.offset : layout.offset + layout.size] == data.tobytes()
    assert (layout.stamp_ns, layout.encoding, layout.step) == (12_000_000_034, text, 0)


@pytest.mark.parametrize('transport', LAYOUTS)
def test_every_truncation_is_refused_by_the_name_of_what_is_missing(transport):
    message, data = image_bytes() if transport == 'raw' else compressed_message()
    end = message.rindex(data.tobytes()) + data.size
    reasons = set()
    for length in range(end):
        with pytest.raises(MalformedMessage) as caught:
            LAYOUTS[transport](message[:length])
        reasons.add(str(caught.value).split()[0])
    assert {'header.stamp', 'header.frame_id', 'data'} <= reasons


@pytest.mark.parametrize(
    ('identifier', 'name'),
    [(2, 'parameter list CDR'), (9, 'delimited CDR2'), (11, 'parameter list CDR2'), (0x4142, 'unknown')],
)
def test_other_encapsulations_are_named(identifier, name):
    message, _ = image_bytes()
    with pytest.raises(
        MalformedMessage, match=rf'encapsulation 0x{identifier:04x} .{name}. is not plain CDR'
    ):
        image_layout(identifier.to_bytes(2, 'big') + message[2:])


def test_a_text_that_claims_megabytes_is_refused_before_it_is_read():
    message, _ = image_bytes()
    lying = message[:12] + (LONGEST_TEXT + 1).to_bytes(4, 'little') + message[16:]
    with pytest.raises(MalformedMessage, match=r'header\.frame_id claims 1025 bytes'):
        image_layout(lying + bytes(5000))


@given(
    transport=st.sampled_from(list(LAYOUTS)),
    little_endian=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 60),
    extra=st.binary(max_size=20),
)
@example('raw', True, [(0, 0), (1, 1)], 0, b'')
def test_flipped_bytes_never_reach_behind_the_message(transport, little_endian, flips, cut, extra):
    message, _ = (image_bytes if transport == 'raw' else compressed_message)(little_endian)
    damaged = bytearray(message[: len(message) - cut] + extra)
    for position, value in flips:
        if damaged:
            damaged[position % len(damaged)] = value
    try:
        layout = LAYOUTS[transport](bytes(damaged))
    except MalformedMessage:
        return
    assert 0 <= layout.offset <= layout.offset + layout.size <= len(damaged)
    slot_frame(bytes(damaged), layout)


@given(
    little_endian=st.lists(st.booleans(), min_size=4, max_size=4),
    frame_ids=st.lists(st.sampled_from(['', 'camera', 'camerb']), min_size=4, max_size=4),
    flips=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200), st.integers(0, 255)), max_size=4),
    cuts=st.lists(st.sampled_from([0, 0, 0, 5, 60]), min_size=4, max_size=4),
)
def test_what_is_remembered_of_the_last_message_changes_nothing(little_endian, frame_ids, flips, cuts):
    messages = [bytearray(image_bytes(*one)[0]) for one in zip(little_endian, frame_ids, strict=True)]
    for index, position, value in flips:
        messages[index][position % len(messages[index])] = value
    repeated = Repeated('raw')
    for message, cut in zip(messages, cuts, strict=True):
        given_bytes = bytes(message[: len(message) - cut])
        assert read(repeated, given_bytes) == read(image_layout, given_bytes)


@given(
    frame_id=st.text(st.characters(codec='ascii', exclude_characters='\0'), max_size=9), rubbish=st.randoms()
)
def test_what_a_writer_leaves_in_padding_or_stamp_makes_no_other_message(frame_id, rubbish):
    message, _ = image_bytes(frame_id=frame_id)
    repeated = Repeated('raw')
    repeated(message)
    known, changed = repeated.known, bytearray(message)
    for position in (at for at, bits in enumerate(repeated.mask) if not bits):
        changed[position] = rubbish.randrange(256)
    assert repeated(bytes(changed)) == image_layout(bytes(changed))
    assert repeated.known is known  # it was not read again
    for position in (at for at, bits in enumerate(repeated.mask) if bits):
        other = bytearray(message)
        other[position] ^= 1
        assert read(repeated, bytes(other)) == read(image_layout, bytes(other))
        repeated(message)


def read(reader, message):
    try:
        return reader(message)
    except MalformedMessage as reason:
        return str(reason)


def slot_frame(message, layout):
    """What the node goes on with: the frame in its slot, then a picture or what is wrong with it."""
    ring = FrameRing()
    slot = ring.free_slot()
    assert ring.make_room(slot, len(message))
    slot.bytes(len(message))[:] = np.frombuffer(message, np.uint8)
    frame = ring.frame(slot, layout, received_ns=1, sequence=1)
    assert frame.data.tobytes() == message[layout.offset : layout.offset + layout.size]
    try:
        picture = decode_image(frame, 'front')
    except ObservationError:
        return
    assert picture.size <= 3 * frame.data.size
