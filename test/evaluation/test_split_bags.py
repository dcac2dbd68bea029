"""Recordings in several storage files: whole, without metadata.yaml, with a part that is damaged or gone."""

import heapq

import pytest
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from evaluation.robots import BagMaker
from flashrt_ros.evaluation.bag import BagError, open_bag

FILE, MESSAGE, STORAGE = CompressionMode.FILE, CompressionMode.MESSAGE, CompressionMode.STORAGE
KINDS = [
    (storage, mode)
    for storage in StoragePlugin
    for mode in (None, FILE, MESSAGE, STORAGE)
    if not (storage is StoragePlugin.SQLITE3 and mode is STORAGE)
]


def maker_of(storage, mode):
    compression = () if mode is None else (mode, CompressionFormat.ZSTD)
    return BagMaker(storage=storage, compression=compression, size=(16, 16))


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
    """Every message of the recording, from one uncompressed file."""
    return contents(BagMaker(size=(16, 16)).write(tmp_path_factory.mktemp('one') / 'bag'))


@pytest.fixture(params=KINDS, ids=[f'{s.value}-{m.value if m else "plain"}' for s, m in KINDS])
def maker(request):
    return maker_of(*request.param)


def contents(path, **options):
    with open_bag(path, **options) as bag:
        return list(bag.records())


def test_a_split_bag_is_read_as_one(maker, expected, tmp_path):
    bag = maker.write_split(tmp_path / 'bag', 0.5, 1.2)
    assert len(list(bag.iterdir())) == 4
    assert contents(bag) == expected
    with open_bag(bag) as opened:
        assert opened.topics['/joint_states'].count == 100
        assert opened.duration_s == pytest.approx(1.98, abs=0.03)


def test_without_metadata_it_is_the_same(maker, expected, tmp_path):
    bag = maker.write_split(tmp_path / 'bag', 0.5, 1.2)
    (bag / 'metadata.yaml').unlink()
    assert contents(bag) == expected


@pytest.mark.parametrize('text', ['', 'rosbag2_bagfile_information: [', 'version: 9', '\0\1\2'])
def test_metadata_that_was_cut_counts_as_none(text, expected, tmp_path):
    bag = BagMaker(size=(16, 16)).write_split(tmp_path / 'bag', 1.0)
    (bag / 'metadata.yaml').write_text(text)
    assert contents(bag) == expected


def test_only_a_part_of_the_time(expected, tmp_path):
    bag = BagMaker(size=(16, 16)).write_split(tmp_path / 'bag', 0.5, 1.2)
    begin, end = expected[20].time_ns, expected[200].time_ns
    with open_bag(bag) as opened:
        found = list(opened.records(None, begin, end))
    assert found == [record for record in expected if begin <= record.time_ns < end]


def test_a_part_that_is_gone_is_named_and_the_others_are_used(maker, expected, tmp_path):
    bag = maker.write_split(tmp_path / 'bag', 0.5, 1.2)
    gone = next(bag.glob('bag_1*'))
    gone.unlink()
    with pytest.raises(BagError, match=f'{gone.name} is missing'):
        open_bag(bag)
    found = contents(bag, readable_part=True)
    missing = [record for record in expected if record not in found]
    assert found == [record for record in expected if record not in missing]
    seconds = [(record.time_ns - expected[0].time_ns) / 1e9 for record in missing]
    assert 0.5 <= min(seconds) < max(seconds) < 1.2


def test_a_part_that_was_cut_costs_its_end_only(maker, expected, tmp_path):
    """The recorder was killed: the last file ends somewhere, and there is no metadata.yaml."""
    bag = maker.write_split(tmp_path / 'bag', 0.5, 1.2)
    (bag / 'metadata.yaml').unlink()
    last = next(bag.glob('bag_2*'))
    data = last.read_bytes()
    last.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(BagError, match=rf'not all of it can be read \({last.name}: '):
        open_bag(bag)
    found = contents(bag, readable_part=True)
    kept = [record for record in expected if record.time_ns - expected[0].time_ns < 1.2e9]
    assert found[: len(kept)] == kept
    assert [record for record in expected if record in found] == found


def test_an_empty_last_part_is_named(expected, tmp_path):
    """A recorder that was killed just after it had begun another file."""
    bag = BagMaker(size=(16, 16)).write_split(tmp_path / 'bag', 0.5)
    (bag / 'metadata.yaml').unlink()
    (bag / 'bag_2.mcap').write_bytes(b'')
    found = contents(bag, readable_part=True)
    assert found == expected
    with open_bag(bag, readable_part=True) as opened:
        assert 'bag_2.mcap: ' in str(opened.fault)


def test_a_file_and_the_beginning_of_its_compressed_copy_count_once(expected, tmp_path):
    packed = maker_of(StoragePlugin.MCAP, FILE).write_split(tmp_path / 'packed', 1.0)
    bag = BagMaker(size=(16, 16)).write_split(tmp_path / 'bag', 1.0)
    (bag / 'metadata.yaml').unlink()
    copy = next(packed.glob('packed_0*')).read_bytes()
    (bag / 'bag_0.mcap.zstd').write_bytes(copy[: len(copy) // 2])
    assert contents(bag) == expected


def test_files_that_overlap_in_time_give_the_order_of_time(expected, tmp_path):
    """Two recorders of different topics, whose files somebody has put into one folder."""
    bag = tmp_path / 'bag'
    bag.mkdir()
    halves = [('/front', '/commands'), ('/wrist', '/joint_states')]
    for number, left_out in enumerate(halves):
        part = BagMaker(size=(16, 16), left_out=left_out).write(tmp_path / f'part{number}')
        next(part.glob('*.mcap')).rename(bag / f'bag_{number}.mcap')
    found = contents(bag)
    assert found == list(heapq.merge(found, key=lambda record: record.time_ns))
    assert sorted(found, key=lambda r: (r.time_ns, r.topic)) == sorted(
        expected, key=lambda r: (r.time_ns, r.topic)
    )
