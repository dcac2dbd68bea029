"""Latency from what the processes published: every nanosecond of a command belongs to one stage."""

import numpy as np
import pytest

from benchmarks.e2e.render import draw, table
from benchmarks.e2e.stages import GRAPH, ORDER, Recording, latencies, percentiles

MS = 1_000_000
BEGIN = 1_700_000_000_000 * MS
OWN = [stage for stage in ORDER if stage not in ('publish', 'to streamer', 'wait for tick')]


def recording(count=3):
    """Chunk i is observed at 100 * i ms; its stages take 1 ms each, its way to the streamer 2, the tick 3."""
    found = Recording(commands=[BEGIN + tick * MS for tick in range(0, 1000, 7)])
    for index in range(count):
        stamp, key = BEGIN + 100 * index * MS, (5, index)
        found.stages[key] = stamp, dict.fromkeys(OWN, 1e-3)
        found.chunks[key] = stamp + (len(OWN) + 1) * MS
        found.accepted[key] = found.chunks[key] + 2 * MS
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
    late.chunks = {key: published + 4 * MS for key, published in late.chunks.items()}
    late.accepted = {key: accepted + 4 * MS for key, accepted in late.accepted.items()}
    assert latencies(recording())['publish'] == pytest.approx([1.0] * 3)
    assert latencies(late)['publish'] == pytest.approx([5.0] * 3)


def test_chunks_that_no_command_followed_are_left_out():
    found = recording()
    del found.accepted[5, 1]
    found.accepted[5, 2] = found.commands[-1]
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
        'milliseconds': {name: percentiles(np.array(v)) for name, v in latencies(recording()).items()},
    }
    text = table([setting])
    for name in (*ORDER, 'total', 'without graph', 'p99.9', '1 of 600 frames lost', 'rate [Hz] 500'):
        assert name in text
    draw({'settings': [setting]}, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').stat().st_size > 5000
