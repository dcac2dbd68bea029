"""Latency from what the processes published: every nanosecond of a command belongs to one stage."""

import numpy as np
import pytest

from benchmarks.e2e.render import draw, table
from benchmarks.e2e.stages import GRAPH, ORDER, Recording, latencies, percentiles
from flashrt_ros.control import Chunk, Entry

MS = 1_000_000
BEGIN = 1_700_000_000_000 * MS
OWN = [stage for stage in ORDER if stage not in ('publish', 'to streamer', 'wait for tick')]


def recording(count=3):
    """Chunk i is observed at 100 * i ms; its stages take 1 ms each, its way to the streamer 2. Commands come
    every 7 ms, and follow it from then on."""
    found = Recording()
    for index in range(count):
        stamp, key = BEGIN + 100 * index * MS, (5, index)
        actions = np.full((50, 2), index + 1.0) + np.arange(50)[:, None] * 0.01
        found.stages[key] = stamp, dict.fromkeys(OWN, 1e-3)
        found.chunks[key] = stamp + (len(OWN) + 1) * MS
        found.accepted[key] = found.chunks[key] + 2 * MS
        found.entries[key] = Entry(Chunk('p', ('a', 'b'), actions, stamp, stamp, 20 * MS, 5, index), stamp)
    for time_ns in range(BEGIN, BEGIN + 1000 * MS, 7 * MS):
        keys = [key for key, accepted in found.accepted.items() if accepted < time_ns]
        made = found.entries[max(keys)].at(time_ns, True) if keys else np.zeros(2)
        found.commands.append(time_ns)
        found.made.append((time_ns, made))
    return found


def test_a_command_is_the_first_behind_the_chunk_that_it_follows():
    found = latencies(recording())
    # Accepted 11, 111 and 211 ms after the start; commands come every 7 ms.
    assert found['wait for tick'] == pytest.approx([3.0, 1.0, 6.0])
    assert found['to streamer'] == pytest.approx([2.0] * 3)
    assert found['total'] == pytest.approx([14.0, 12.0, 17.0])
    assert sum(found[stage] for stage in ORDER) == pytest.approx(found['total'])
    assert found['without graph'] == pytest.approx(found['total'] - len(GRAPH))


def test_what_no_stage_has_measured_belongs_to_the_publication():
    late = recording()
    late.chunks = {key: published + MS for key, published in late.chunks.items()}
    assert latencies(recording())['publish'] == pytest.approx([1.0] * 3)
    assert latencies(late)['publish'] == pytest.approx([2.0] * 3)


def test_what_is_told_late_counts_from_the_command_that_followed():
    """A command may follow a chunk before the streamer has told it."""
    told = recording()
    told.accepted = {key: accepted + 20 * MS for key, accepted in told.accepted.items()}
    assert latencies(told)['total'] == pytest.approx(latencies(recording())['total'])
    assert latencies(told)['wait for tick'] == pytest.approx([0.0] * 3)


def test_messages_may_be_heard_in_any_order():
    found = recording()
    for listed in (found.commands, found.made):
        listed[::2], listed[1::2] = listed[: -(-len(listed) // 2)], listed[-(-len(listed) // 2) :]
    assert latencies(found)['total'] == pytest.approx(latencies(recording())['total'])


def test_chunks_that_no_command_followed_are_left_out():
    found = recording()
    del found.accepted[5, 1]
    found.made = [(made, positions * (positions < 3)) for made, positions in found.made]
    assert len(latencies(found)['total']) == 1
    assert latencies(Recording()) == {}


def test_the_report_names_every_stage_and_percentile(tmp_path):
    setting = {
        'setting': '2 x 640x480, 30 Hz',
        'measured': 3,
        'blocked': 0,
        'lost': {'front': 1, 'wrist': 0},
        'cameras': {'sent': 300},
        'streamer': {'command rate [Hz]': 500.0},
        'streamer_scheduling': 'SCHED_FIFO 50',
        'milliseconds': {name: percentiles(np.array(v)) for name, v in latencies(recording()).items()},
    }
    text = table([setting])
    told = ('1 of 600 frames lost', 'rate [Hz] 500', 'scheduling: SCHED_FIFO 50')
    for name in (*ORDER, 'total', 'without graph', 'p99.9', *told):
        assert name in text
    draw({'settings': [setting]}, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').stat().st_size > 5000
