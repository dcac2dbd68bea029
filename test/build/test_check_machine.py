"""What a machine lacks is said with the command that installs it."""

import subprocess
import sys
from collections import namedtuple

import pytest

from .tool import ROOT, load_tool

check_machine = load_tool('check_machine')
SCRIPT = ROOT / 'tools/check_machine.py'
Version = namedtuple('Version', 'major minor micro')


def test_a_machine_that_can_build_passes_in_silence():
    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_a_machine_without_compilers_is_told_which_packages_to_install(tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, env={'PATH': str(tmp_path)}
    )
    assert result.returncode == 1
    assert 'missing: C++ compiler g++ (package g++)' in result.stderr
    assert 'sudo apt install g++ gcc make\n' in result.stderr


def test_the_package_names_alone_are_for_scripts(tmp_path):
    command = [sys.executable, SCRIPT, '--packages']
    result = subprocess.run(command, capture_output=True, text=True, env={'PATH': str(tmp_path)})
    assert (result.returncode, result.stdout) == (0, 'g++ gcc make\n')


def test_missing_python_headers_name_the_package_of_that_python(monkeypatch):
    monkeypatch.setattr(check_machine, 'has_headers', lambda: False)
    monkeypatch.setattr(sys, 'version_info', Version(3, 12, 1))
    assert check_machine.missing() == {'Python headers (Python.h)': 'python3.12-dev'}


@pytest.mark.parametrize('version', [Version(3, 9, 2), Version(3, 14, 0)])
def test_a_python_without_ros_wheels_is_refused_with_the_way_to_name_another(monkeypatch, version):
    monkeypatch.setattr(sys, 'version_info', version)
    expected = f'is Python 3.{version.minor}; the ROS 2 wheels exist for Python 3.10 to 3.13'
    assert expected in check_machine.wrong_python()
    assert 'make PYTHON=python3.12' in check_machine.wrong_python()


@pytest.mark.parametrize('minor', [10, 11, 12, 13])
def test_every_python_with_ros_wheels_is_accepted(monkeypatch, minor):
    monkeypatch.setattr(sys, 'version_info', Version(3, minor, 0))
    assert check_machine.wrong_python() == ''


def test_a_machine_of_another_architecture_is_sent_to_colcon(monkeypatch):
    monkeypatch.setattr(check_machine.platform, 'machine', lambda: 'aarch64')
    assert 'build with colcon instead' in check_machine.wrong_platform()
