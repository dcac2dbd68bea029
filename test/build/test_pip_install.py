"""`pip install .` gives the ROS-free part, with the files that it reads."""

import os
import shutil
import subprocess
import sys

import pytest

from .tool import ROOT

SOURCES = ('flashrt_ros', 'kernels', 'config', 'msg', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE')


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with the installed package and nothing else. Of a copy, because pip builds in place."""
    sources, target = tmp_path_factory.mktemp('sources'), tmp_path_factory.mktemp('site')
    for name in (*SOURCES, *(path.name for path in ROOT.glob('requirements*.txt'))):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, sources / name)
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation']
    subprocess.run([*command, '--no-index', '--target', target, sources], check=True)
    return target


def run(program: str, site, cwd) -> str:
    environment = os.environ | {'PYTHONPATH': str(site)}
    command = [sys.executable, '-c', program]
    return subprocess.run(
        command, env=environment, cwd=cwd, check=True, capture_output=True, text=True
    ).stdout


def test_kernels_and_examples_come_with_it(installed, tmp_path):
    program = (
        'from flashrt_ros.resources import resource_folder\n'
        'print(*sorted(p.name for f in ("kernels", "config") for p in resource_folder(f).iterdir()))'
    )
    carried = {path.name for path in (ROOT / 'kernels').glob('*.cu*')}
    carried |= {path.name for pattern in ('*.yaml', '*.xml') for path in (ROOT / 'config').glob(pattern)}
    assert set(run(program, installed, tmp_path).split()) == carried


def test_the_core_imports_without_ros(installed, tmp_path):
    program = (
        'import sys\n'
        'sys.modules["rclpy"] = None\n'
        'import flashrt_ros.policy, flashrt_ros.configuration, flashrt_ros.evaluation.bag\n'
        'import flashrt_ros.models.backend\n'
        'print(flashrt_ros.policy.__file__)'
    )
    assert run(program, installed, tmp_path).startswith(str(installed))


def test_the_command_and_the_message_definitions_come_with_it(installed, tmp_path):
    program = (
        'from flashrt_ros.evaluation.interfaces import CHUNK, known_types\n'
        'assert CHUNK in known_types().fielddefs\n'
        'from flashrt_ros.cli.main import main\n'
        'main(["--version"])'
    )
    assert run(program, installed, tmp_path).startswith('flashrt_ros ')
    assert (installed / 'bin/flashrt').exists()
