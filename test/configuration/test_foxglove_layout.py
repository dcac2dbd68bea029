"""The Foxglove layout: panels of known kinds with the keys that they read, each in its place.

Kinds and keys are those of Lichtblick, the open continuation of Foxglove Studio (lichtblick-suite/lichtblick
at 66adecb, 2026-08-07, `packages/suite-base/src/panels/`). Topics, fields and services: test/nodes.
"""

import json
import re
from pathlib import Path

import pytest

from flashrt_ros.configuration import load_config

ROOT = Path(__file__).parents[2]
LAYOUT = json.loads((ROOT / 'config' / 'foxglove_layout.json').read_text())
CONFIG = load_config(ROOT / 'config' / 'so101.yaml')
PANELS = LAYOUT['configById']

TITLES = {'foxglovePanelTitle', 'lichtblickPanelTitle'}
"""The same key in Foxglove and in Lichtblick (`util/layout.ts`)."""

KEYS = {
    'Plot': {  # Plot/utils/config.ts
        *(
            'paths',
            'isSynced',
            'xAxisVal',
            'showLegend',
            'legendDisplay',
            'showXAxisLabels',
            'showYAxisLabels',
        ),
        *TITLES,
    },
    'Image': {'imageMode'},  # ThreeDeeRender/IRenderer.ts
    'CallService': {'serviceName', 'requestPayload', 'layout', 'buttonText', 'buttonColor'},
    'DiagnosticSummary': {'minLevel', 'pinnedIds', 'topicToRender', 'hardwareIdFilter'},
    'DiagnosticStatusPanel': {'topicToRender', 'selectedHardwareId', 'selectedName'},
}
PATH_KEYS = {'value', 'label', 'enabled', 'timestampMethod'}
CHOICES = {
    'xAxisVal': {'timestamp', 'index'},
    'legendDisplay': {'floating', 'top', 'left', 'none'},
    'layout': {'vertical', 'horizontal'},
    'timestampMethod': {'receiveTime', 'headerStamp'},
}


@pytest.mark.parametrize('panel', PANELS)
def test_a_panel_is_of_a_known_kind_and_has_only_keys_that_it_reads(panel):
    config = PANELS[panel]
    kind, _, number = panel.partition('!')
    assert number
    assert set(config) <= KEYS[kind]
    assert all(set(path) == PATH_KEYS for path in config.get('paths', ()))
    for part in (config, *config.get('paths', ())):
        assert all(part[key] in choices for key, choices in CHOICES.items() if key in part)
    if kind == 'Plot':
        assert len({config[title] for title in TITLES}) == 1


def test_the_layout_is_whole_and_places_every_panel_once():
    """`validateLayoutData` of util/layout.ts, and react-mosaic's tree of two."""

    def leaves(node):
        if isinstance(node, str):
            return [node]
        assert node['direction'] in ('row', 'column')
        return [*leaves(node['first']), *leaves(node['second'])]

    assert sorted(leaves(LAYOUT['layout'])) == sorted(PANELS)
    assert type(LAYOUT['playbackConfig']['speed']) is int
    assert isinstance(LAYOUT['globalVariables'], dict)


def test_what_is_plotted_by_index_is_a_range():
    for config in (config for config in PANELS.values() if 'paths' in config):
        assert {path['value'].endswith('[:]') for path in config['paths']} == {config['xAxisVal'] == 'index'}


def test_labels_are_the_joints_of_the_example():
    """Fields are plotted by position, so the labels must be in the order of the joints."""
    for panel, wanted in (('Plot!joints', ('{}', '{} command')), ('Plot!fan', ('{}',))):
        told = [path['label'] for path in PANELS[panel]['paths']]
        assert told == [label.format(joint) for label in wanted for joint in CONFIG.joint_names]
        columns = [int(re.search(r'\[(\d)\](?!.*\[\d\])', p['value'])[1]) for p in PANELS[panel]['paths']]
        assert columns == [*range(len(CONFIG.joint_names))] * len(wanted)
