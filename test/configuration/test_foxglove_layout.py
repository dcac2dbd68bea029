"""The Foxglove layout names topics, fields and services that exist, and every panel that it places."""

import json
import re
from pathlib import Path

import pytest

from flashrt_ros.configuration import load_config

ROOT = Path(__file__).parents[2]
LAYOUT = json.loads((ROOT / 'config' / 'foxglove_layout.json').read_text())
CONFIG = load_config(ROOT / 'config' / 'so101.yaml')
OURS = {'/action_chunk': 'ActionChunk', '/inference_stats': 'InferenceStats'}


def fields(message):
    text = (ROOT / 'msg' / f'{message}.msg').read_text()
    return set(re.findall(r'^[\w/\[\]]+ +(\w+)', text, re.M))


def paths():
    for panel in LAYOUT['configById'].values():
        for path in panel.get('paths', ()):
            yield path['value']


@pytest.mark.parametrize('path', sorted(set(paths())))
def test_a_plotted_value_exists(path):
    topic, _, rest = path.partition('.')
    if topic in OURS:
        assert re.match(r'\w+', rest)[0] in fields(OURS[topic])
    else:
        assert topic in ('/studio_script/chunk_fan', CONFIG.joint_states.topic, CONFIG.output.topic)


def test_the_layout_places_every_panel_once():
    def leaves(node):
        return [node] if isinstance(node, str) else [*leaves(node['first']), *leaves(node['second'])]

    assert sorted(leaves(LAYOUT['layout'])) == sorted(LAYOUT['configById'])


def test_pictures_and_services_are_those_of_the_example():
    panels = LAYOUT['configById']
    pictures = {panel['imageMode']['imageTopic'] for panel in panels.values() if 'imageMode' in panel}
    assert pictures == {camera.topic for camera in CONFIG.cameras.values()}
    services = {panel['serviceName'] for panel in panels.values() if 'serviceName' in panel}
    assert services == {f'/action_streamer/{act}' for act in ('hold', 'estop', 'reset', 'resume')}
    source = LAYOUT['userNodes']['chunk-fan']['sourceCode']
    for field in ('data', 'names', 'horizon', 'action_dim'):
        assert field in fields('ActionChunk')
        assert field in source
