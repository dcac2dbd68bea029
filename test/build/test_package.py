"""What the colcon build installs, and that the three descriptions of the package agree."""

import json
import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

import flashrt_ros

from .tool import ROOT


def test_cmake_package_and_python_have_one_version_and_licence():
    package = xml.parse(ROOT / 'package.xml').getroot()
    assert package.findtext('version') == flashrt_ros.__version__
    assert package.findtext('license') in (ROOT / 'pyproject.toml').read_text()
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()


def test_every_message_is_built():
    listed = set(re.findall(r'^  (msg/\w+\.msg)$', (ROOT / 'CMakeLists.txt').read_text(), re.MULTILINE))
    assert listed == {str(path.relative_to(ROOT)) for path in (ROOT / 'msg').glob('*.msg')}


@pytest.fixture(scope='module')
def prefix() -> Path:
    packages = pytest.importorskip('ament_index_python.packages', reason='needs ROS 2')
    return Path(packages.get_package_prefix('flashrt_ros'))


@pytest.mark.ros
@pytest.mark.parametrize('name', ['policy_node', 'action_streamer', 'sim_node', 'flashrt', 'doctor'])
def test_ros2_run_finds_the_nodes(prefix, name):
    executable = prefix / 'lib/flashrt_ros' / name
    assert os.access(executable, os.X_OK)
    interpreter = Path(executable.read_text().splitlines()[0].removeprefix('#!'))
    assert interpreter.samefile(sys.executable)
    # A process that it starts imports it under another name, and must not run it again.
    runpy.run_path(str(executable), run_name='__mp_main__')


@pytest.mark.ros
@pytest.mark.parametrize('folder', ['launch', 'config', 'demo'])
def test_every_file_that_users_name_is_installed(prefix, folder):
    installed = {path.name for path in (prefix / 'share/flashrt_ros' / folder).iterdir()}
    expected = {path.name for path in (ROOT / folder).iterdir()} - {'__pycache__', 'out'}
    assert installed >= expected, 'run make build: the list of files has changed'


@pytest.mark.ros
def test_the_installed_package_is_whole_without_the_working_tree(prefix, tmp_path):
    site = next(prefix.glob('lib/python3*/site-packages'))
    program = (
        'import flashrt_ros, flashrt_ros.msg, flashrt_ros.policy, flashrt_ros.nodes\n'
        'from flashrt_ros.resources import resource_folder\n'
        'print(flashrt_ros.__file__)\n'
        'print(len(list(resource_folder("kernels").glob("*.cu"))))\n'
    )
    environment = os.environ | {'PYTHONPATH': str(site)}
    command = [sys.executable, '-c', program]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    file, kernels = result.stdout.split()
    assert Path(file).parent.parent == site
    assert int(kernels) == len(list((ROOT / 'kernels').glob('*.cu')))


@pytest.mark.ros
def test_a_message_of_the_working_tree_is_the_one_that_was_built(prefix):
    for source in (ROOT / 'msg').glob('*.msg'):
        built = prefix / 'share/flashrt_ros/msg' / source.name
        assert built.read_text() == source.read_text(), 'run make build'
        description = json.loads(built.with_suffix('.json').read_text())
        assert (
            description['type_description_msg']['type_description']['type_name']
            == f'flashrt_ros/msg/{source.stem}'
        )
