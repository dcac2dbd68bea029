"""The flat view of the configuration, its documentation, and the check against a checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest

from flashrt_ros.configuration import check_against, leaves, load_config, with_values
from flashrt_ros.configuration.document import table, updated
from flashrt_ros.errors import ConfigError
from flashrt_ros.policy import PolicyInfo

ROOT = Path(__file__).parents[2]
CONFIG = load_config(ROOT / 'config' / 'so101.yaml')
INFO = PolicyInfo(
    name='nano',
    family='pi05',
    views=('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb'),
    state_dim=6,
    action_dim=6,
    horizon=50,
    steps=10,
    device='cpu',
    precision='fp32',
    parameters=1,
)


def test_every_leaf_is_described_and_every_number_bounded():
    for leaf in leaves(CONFIG):
        assert leaf.description, leaf.key
        if leaf.type in (int, float):
            assert leaf.minimum is not None, leaf.key
            assert leaf.maximum is not None, leaf.key


def test_keys_are_unique_and_name_joints_and_views():
    keys = [leaf.key for leaf in leaves(CONFIG)]
    assert len(keys) == len(set(keys))
    assert {'robot.joints.gripper.scale', 'cameras.base_0_rgb.topic', 'rates.chunk_rate_hz', 'prompt'} <= set(
        keys
    )


def test_writing_every_leaf_back_changes_nothing():
    assert with_values(CONFIG, {leaf.key: leaf.value for leaf in leaves(CONFIG)}) == CONFIG


def test_a_value_replaces_one_leaf():
    changed = with_values(CONFIG, {'robot.joints.gripper.offset': 3.0, 'cameras.base_0_rgb.max_age_s': 1.0})
    assert changed.robot.joints[-1].offset == 3.0
    assert changed.cameras['base_0_rgb'].max_age_s == 1.0
    assert CONFIG.robot.joints[-1].offset == 0.0


def test_values_are_validated_together():
    with pytest.raises(
        ConfigError, match=r'parameters: rates\.chunk_rate_hz: 60 Hz is above control_rate_hz 50 Hz'
    ):
        with_values(CONFIG, {'rates.chunk_rate_hz': 60.0})
    assert with_values(CONFIG, {'rates.chunk_rate_hz': 60.0, 'rates.control_rate_hz': 60.0})


def test_an_unknown_value_is_refused():
    with pytest.raises(ConfigError, match=r"did you mean 'executor\.hold_s'"):
        with_values(CONFIG, {'executor.holds': 1.0})


def test_a_path_given_as_value_starts_in_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert with_values(CONFIG, {'policy.checkpoint': 'nano'}).policy.checkpoint == str(tmp_path / 'nano')


def test_the_documentation_holds_the_table_of_the_schema():
    document = (ROOT / 'docs' / 'configuration.md').read_text(encoding='utf-8')
    assert table() in document
    assert updated(document) == document


def test_the_robot_fits_its_checkpoint():
    check_against(CONFIG, INFO)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'views': ('base_0_rgb', 'right_wrist_0_rgb')},
            r"cameras\.left_wrist_0_rgb: .* has no view 'left_wrist_0_rgb'",
        ),
        ({'views': ('base_0_rgb', 'left_wrist_0_rgb')}, r"masked_views: .* has no view 'right_wrist_0_rgb'"),
        (
            {'views': (*INFO.views, 'top')},
            r"cameras: .* has a view 'top' without a camera\. Add 'cameras\.top'",
        ),
        (
            {'action_dim': 7},
            r"robot\.joints: 6 joints are listed, but the checkpoint 'nano' has 7 action columns",
        ),
        ({'state_dim': 14}, r'robot\.joints: .* has 14 state columns'),
        ({'action_dim': 0}, r'policy\.action_dim: .* does not say how wide its action is'),
        (
            {'horizon': 4},
            r'rates\.chunk_rate_hz: a chunk of 4 rows at 20 Hz lasts 0\.2 s, .* Raise it above 5 Hz',
        ),
    ],
)
def test_a_robot_that_does_not_fit_its_checkpoint(change, message):
    with pytest.raises(ConfigError, match=message):
        check_against(CONFIG, replace(INFO, **change))


def test_a_view_with_a_camera_cannot_be_masked():
    masked = with_values(CONFIG, {'policy.masked_views': ['right_wrist_0_rgb', 'base_0_rgb']})
    with pytest.raises(ConfigError, match=r"policy\.masked_views: the view 'base_0_rgb' has a camera"):
        check_against(masked, INFO)
