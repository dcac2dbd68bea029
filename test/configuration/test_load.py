"""A robot's YAML is either accepted as a whole or refused with the key and the fix."""

from pathlib import Path

import pytest
import yaml

from flashrt_ros.configuration import load_config
from flashrt_ros.errors import ConfigError
from flashrt_ros.pictures import Framing

CONFIG = Path(__file__).parents[2] / 'config'


@pytest.fixture
def data():
    return yaml.safe_load((CONFIG / 'so101.yaml').read_text())


@pytest.fixture
def load(tmp_path):
    """Writes a mapping or a text as a file and loads it."""

    def load(content):
        file = tmp_path / 'robot.yaml'
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return load_config(file)

    return load


@pytest.mark.parametrize(
    'name', ['so101.yaml', 'so101_simulation.yaml', 'aloha_simulation.yaml', 'example_bimanual.yaml']
)
def test_shipped_configurations_load(name):
    config = load_config(CONFIG / name)
    assert config.joint_names
    assert Path(config.policy.checkpoint).is_absolute()


def test_checkpoint_path_is_relative_to_the_file(load, data, tmp_path):
    data['policy']['checkpoint'] = 'weights/nano'
    assert load(data).policy.checkpoint == str((tmp_path / 'weights/nano').resolve())


def test_joints_keep_the_order_of_the_file(load, data):
    data['robot']['joints'].reverse()
    assert load(data).joint_names[0] == 'gripper'


def test_how_a_camera_is_mounted(load, data):
    data['cameras']['base_0_rgb'] |= {'rotate': 180, 'flip': 'horizontal', 'crop': [8, 0, 48, 48]}
    cameras = load(data).cameras
    assert cameras['base_0_rgb'].framing == Framing(180, 'horizontal', (8, 0, 48, 48))
    assert cameras['left_wrist_0_rgb'].framing == Framing()


def _set(path, value):
    def change(data):
        *parents, last = path.split('.')
        for part in parents:
            data = data[int(part)] if part.isdigit() else data[part]
        if value is KeyError:
            del data[last]
        else:
            data[last] = value

    return change


FAULTS = {
    'unknown key': (
        _set('rates.chunk_rate', 3.0),
        r"rates\.chunk_rate: .* did you mean 'chunk_rate_hz'",
    ),
    'unknown section': (_set('polcy', {}), r"polcy: there is no key 'polcy'; did you mean 'policy'"),
    'unknown key of a joint': (
        _set('robot.joints.1.scle', 1.0),
        r"robot\.joints\[1\]\.scle: there is no key .*did you mean 'scale'",
    ),
    'missing topic': (
        _set('cameras.base_0_rgb.topic', KeyError),
        r'cameras\.base_0_rgb\.topic: the key is missing',
    ),
    'missing section': (_set('rates', KeyError), r'rates: the key is missing\. Add it'),
    'bad topic': (
        _set('joint_states.topic', '/joint states'),
        r"joint_states\.topic: '/joint states' is not a ROS topic",
    ),
    'topic twice': (
        _set('cameras.left_wrist_0_rgb.topic', '/camera/front/image_raw/compressed'),
        r"cameras\.left_wrist_0_rgb\.topic: .* already the topic of the view 'base_0_rgb'\. Give every view",
    ),
    'an eighth of a turn': (
        _set('cameras.base_0_rgb.rotate', 45),
        r'cameras\.base_0_rgb\.rotate: 45 is no quarter turn\. Choose 0, 90, 180 or 270',
    ),
    'a crop of three numbers': (
        _set('cameras.base_0_rgb.crop', [0, 0, 64]),
        r'cameras\.base_0_rgb\.crop: \[0, 0, 64\] is no part of a picture\. Give \[x, y, width, height\]',
    ),
    'a crop of nothing': (
        _set('cameras.base_0_rgb.crop', [5, 5, 0, 9]),
        r'cameras\.base_0_rgb\.crop: \[5, 5, 0, 9\] is no part',
    ),
    'no cameras': (_set('cameras', {}), r'cameras: it is empty'),
    'bad view name': (_set('cameras.a b', {'topic': '/x'}), r"cameras\.a b: 'a b' is not a name"),
    'duplicate joint': (
        _set('robot.joints.2.name', 'gripper'),
        r"robot\.joints: the joint 'gripper' is listed twice",
    ),
    'no joints': (_set('robot.joints', []), r'robot\.joints: it is empty'),
    'limits swapped': (
        _set('robot.joints.0.position_min', 2.5),
        r'robot\.joints\[0\]\.position_min: 2\.5 is not below',
    ),
    'zero scale': (_set('robot.joints.0.scale', 0.0), r'robot\.joints\[0\]\.scale: must not be 0'),
    'rate not positive': (_set('rates.control_rate_hz', 0.0), r'rates\.control_rate_hz: 0\.0 is below 1'),
    'rate too high': (
        _set('rates.action_rate_hz', 1e9),
        r'rates\.action_rate_hz: 1000000000\.0 is above 1000',
    ),
    'rate not a number': (
        _set('rates.chunk_rate_hz', '5'),
        r"rates\.chunk_rate_hz: '5': input should be a valid number",
    ),
    'rate nan': (_set('rates.chunk_rate_hz', float('nan')), r'rates\.chunk_rate_hz: nan: .*finite'),
    'more chunks than commands': (
        _set('rates.chunk_rate_hz', 80.0),
        r'chunk_rate_hz: 80 Hz is above control_rate_hz 50',
    ),
    'unknown choice': (
        _set('output.type', 'twist'),
        r"output\.type: 'twist' is not one of: 'joint_trajectory', ",
    ),
    'fp8 on the CPU': (
        _set('policy.precision', 'fp8'),
        r"policy\.precision: 'fp8' does not run on 'cpu'\. Choose fp32",
    ),
    'empty path': (_set('policy.checkpoint', ''), r'policy\.checkpoint: the path is empty'),
    'unknown delta joint': (
        _set('policy.delta_joints', ['griper']),
        r"delta_joints: there is no joint 'griper'; did you",
    ),
    'section is a word': (_set('policy', 'pi05'), r"policy: 'pi05': input should be a valid dictionary"),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_is_named_with_file_key_and_fix(load, data, fault):
    change, message = FAULTS[fault]
    change(data)
    with pytest.raises(ConfigError, match=message) as caught:
        load(data)
    assert 'robot.yaml: ' in caught.value.where
    assert caught.value.fix


def test_several_faults_are_all_named(load, data):
    for fault in ('missing section', 'bad topic', 'limits swapped'):
        FAULTS[fault][0](data)
    with pytest.raises(ConfigError) as caught:
        load(data)
    for key in ('rates', 'joint_states.topic', 'robot.joints[0]'):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'holds no mapping of sections'),
        ('- a\n- b', 'holds no mapping of sections'),
        ('robot: {name: [', 'not valid YAML'),
        ('prompt: a\nprompt: b', "not valid YAML .*'prompt' is given twice"),
        ('? [a, b]\n: c', 'not valid YAML .*not a plain word'),
        ('robot: !!python/object:os.system {}', 'not valid YAML'),
    ],
)
def test_a_file_that_is_no_configuration(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r'nowhere\.yaml: the file does not exist'):
        load_config(tmp_path / 'nowhere.yaml')


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / 'robot.yaml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ConfigError, match='cannot be read'):
        load_config(tmp_path / 'robot.yaml')
