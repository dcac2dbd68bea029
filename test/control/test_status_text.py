"""What stands in the terminal, for reports as the nodes send them."""

from flashrt_ros.control.status_text import Latency, Report, in_trouble, status_lines

STREAMER = Report(
    '/action_streamer',
    1,
    'held: hold, by the operator',
    {
        'state': 'active',
        'motion': 'held',
        'stop reason': 'hold, by the operator',
        'command rate [Hz]': '100',
        'underruns': '2',
    },
    0.4,
)
POLICY = Report('/policy_node', 0, 'active', {'state': 'active', 'inference p99 [ms]': '12.5'}, 0.2)
CAMERA = Report('/policy_node: input front', 0, 'arriving', {'rate [Hz]': '30', 'age [s]': '0.02'}, 0.2)


def test_everything_stands_under_its_node():
    lines = status_lines([STREAMER, POLICY, CAMERA], Latency({'vision': 0.002, 'denoise': 0.005}, 0.030))
    assert lines == [
        'WARN   /action_streamer  active  held: hold, by the operator',
        '       motion held: hold, by the operator',
        '       command rate [Hz] 100 | underruns 2',
        'ok     /policy_node  active  active',
        '       inference p99 [ms] 12.5',
        '  ok    front: 30 Hz, 0.02 s old  arriving',
        '',
        'latency [ms], sensor to chunk: 30.0',
        '       vision 2.0 | denoise 5.0',
    ]


def test_a_node_that_fell_silent_is_gone():
    lines = status_lines([Report('/policy_node', 0, 'active', {}, 7.2)], None)
    assert lines == ['GONE   /policy_node    silent for 7 s']


def test_nothing_at_all_has_a_hint():
    assert 'ROS_DOMAIN_ID' in status_lines([], None)[0]


def test_long_lines_are_wrapped_and_cut():
    values = {
        'state': 'active',
        'command rate [Hz]': '100',
        'rows left': '20',
        'underruns': '3',
        'stops': '1',
    }
    lines = status_lines([Report('/action_streamer', 0, 'x' * 300, values, 0.0)], None, width=40)
    assert max(map(len, lines)) <= 40
    assert len(lines) == 4


def test_trouble_is_an_error_a_warning_silence_or_nobody():
    assert in_trouble([])
    assert in_trouble([STREAMER, POLICY])
    assert in_trouble([Report('/policy_node', 0, 'active', {}, 7.2)])
    assert not in_trouble([POLICY, CAMERA])
