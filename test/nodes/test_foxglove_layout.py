"""Every topic, field, service and diagnostic of the Foxglove layout is one of the running nodes."""

import importlib
import json
import re
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray

from flashrt_ros.nodes.action_streamer import ActionStreamer
from flashrt_ros.nodes.policy_node import PolicyNode
from nodes.graph import wait_until

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parents[2]
LAYOUT = json.loads((ROOT / 'config' / 'foxglove_layout.json').read_text())
PANELS = LAYOUT['configById'].values()
SCRIPT = LAYOUT['userNodes']['chunk-fan']['sourceCode']
NUMBERS = r'(u?int(8|16|32|64)|float|double|boolean)'


def message_class(name):
    package, _, kind = name.replace('/msg/', '/').partition('/')
    return getattr(importlib.import_module(f'{package}.msg'), kind)


def resolve(path, types):
    """The type of the value at a message path such as /topic.points[0].positions[1]."""
    topic, *steps = path.split('.')
    kind = types[topic]
    for step in steps:
        field, index = re.fullmatch(r'(\w+)((?:\[[\d:]+\])?)', step).groups()
        kind = message_class(kind).get_fields_and_field_types()[field]
        element = re.fullmatch(r'sequence<([^,>]+).*>', kind) or re.fullmatch(r'(.+)\[\d+\]', kind)
        assert bool(index) == bool(element), f'{path}: {field} is {kind}'
        kind = element[1] if element else kind
    return kind


@pytest.fixture
def started(graph):
    """Both nodes, configured for the example."""
    config = ROOT / 'config' / 'so101.yaml'
    diagnostics = graph.watch(DiagnosticArray, '/diagnostics')
    for node_class in (ActionStreamer, PolicyNode):
        assert graph.change(graph.start(node_class, config), 'configure')
    return graph, diagnostics


def test_the_layout_shows_what_the_nodes_of_the_example_have(started):
    graph, diagnostics = started
    tester = graph.tester

    def types():
        return {name: kinds[0] for name, kinds in tester.get_topic_names_and_types()}

    plotted = {path['value'] for panel in PANELS for path in panel.get('paths', ())}
    ours = {path for path in plotted if not path.startswith('/studio_script/')}
    wait_until(lambda: {path.split('.')[0] for path in ours} <= set(types()), what='every topic plotted')
    for path in ours:
        assert re.fullmatch(NUMBERS, resolve(path, types())), path

    pictures = {panel['imageMode']['imageTopic'] for panel in PANELS if 'imageMode' in panel}
    assert {types()[picture] for picture in pictures} == {'sensor_msgs/msg/CompressedImage'}
    assert {panel['topicToRender'] for panel in PANELS if 'topicToRender' in panel} == {'/diagnostics'}

    services = {panel['serviceName'] for panel in PANELS if 'serviceName' in panel}
    assert services == {f'/action_streamer/{act}' for act in ('hold', 'estop', 'reset', 'resume')}
    kinds = dict(tester.get_service_names_and_types())
    assert {kinds[service][0] for service in services} == {'std_srvs/srv/Trigger'}

    # Lichtblick's DiagnosticSummary/utils/util.ts, getDiagnosticId; DiagnosticStatusPanel goes by both parts.
    wanted = {pin for panel in PANELS for pin in panel.get('pinnedIds', ())}
    wanted |= {
        f'|{panel["selectedHardwareId"]}|{panel["selectedName"]}|'
        for panel in PANELS
        if 'selectedName' in panel
    }

    def told():
        return {f'|{s.hardware_id}|{s.name}|' for _, array in list(diagnostics) for s in array.status}

    wait_until(lambda: wanted <= told(), what=f'diagnostics of {wanted}')


def test_the_script_reads_and_gives_what_the_layout_plots(started):
    graph, _ = started
    (read,) = re.findall(r'inputs = \["(.+)"\]', SCRIPT)
    (taken,) = re.findall(r'const \{ (.+) \} = event\.message', SCRIPT)
    types = {name: kinds[0] for name, kinds in graph.tester.get_topic_names_and_types()}
    assert set(taken.split(', ')) <= set(message_class(types[read]).get_fields_and_field_types())
    (given,) = re.findall(r'output = "(.+)"', SCRIPT)
    plotted = {path['value'] for panel in PANELS for path in panel.get('paths', ())}
    scripted = {path for path in plotted if path.startswith('/studio_script/')}
    assert scripted
    assert all(re.fullmatch(re.escape(given) + r'\.joints\[\d\]\.positions\[:\]', path) for path in scripted)
    assert re.search(r'\{ joints: Joint\[\] \}', SCRIPT)
    assert re.search(r'type Joint = \{ name: string; positions: number\[\] \}', SCRIPT)
