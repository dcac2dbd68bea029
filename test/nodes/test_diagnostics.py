"""What an operator reads of an input, from its stream and the publishers on its topic."""

from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from flashrt_ros.frame import Frame
from flashrt_ros.ingest.stream import Stream
from flashrt_ros.nodes.diagnostics import InputMonitor

pytestmark = pytest.mark.ros

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND


def report(publishers=1, frames=1, dropped='', age_s=0.01):
    node = SimpleNamespace(
        count_publishers=lambda topic: publishers, get_fully_qualified_name=lambda: '/node'
    )
    stream = Stream('front', '/camera')
    for _ in range(frames):
        stream.keep(Frame(np.zeros(3, np.uint8), 'rgb8', 1, 1, 3, stamp_ns=NOW - round(age_s * SECOND)))
    if dropped:
        stream.drop(dropped)
    return InputMonitor(node, 'arm').report(stream, 0.2, NOW)


@pytest.mark.parametrize(
    ('given', 'level', 'message'),
    [
        ({}, DiagnosticStatus.OK, 'arriving'),
        ({'publishers': 2}, DiagnosticStatus.WARN, '2 publishers on one topic: what they send is mixed'),
        ({'dropped': 'data needs 9'}, DiagnosticStatus.WARN, 'the last one was dropped: data needs 9'),
        ({'age_s': 0.3}, DiagnosticStatus.ERROR, '0.300 s old'),
        ({'frames': 0}, DiagnosticStatus.ERROR, 'nothing received'),
        ({'frames': 0, 'publishers': 0}, DiagnosticStatus.ERROR, 'nobody publishes on its topic'),
        ({'frames': 0, 'dropped': 'data needs 9'}, DiagnosticStatus.ERROR, 'data needs 9'),
    ],
)
def test_level_and_message(given, level, message):
    status = report(**given)
    assert (status.level, status.message, status.name) == (level, message, '/node: input front')
    values = {pair.key: pair.value for pair in status.values}
    assert values['publishers'] == str(given.get('publishers', 1))
    assert values['rejected'] == str(int('dropped' in given))
