"""The ROS 2 wheels' CMake files name the machine that built them; after installing they name this one."""

import re
import sys
from pathlib import Path

import pytest

from .tool import load_tool

relocate_ros_wheels = load_tool('relocate_ros_wheels')

EXPORT = """set_target_properties(std_msgs::std_msgs__rosidl_generator_py PROPERTIES
  INTERFACE_INCLUDE_DIRECTORIES "\
/opt/python/cp{py}-cp{py}/lib/python3.{minor}/site-packages/numpy/{core}/include;\
/opt/python/cp{py}-cp{py}/include/python3.{minor};${{_IMPORT_PREFIX}}/include/std_msgs"
)
"""


def prefix_with(folder: Path, text: str) -> Path:
    exports = folder / 'share/std_msgs/cmake'
    exports.mkdir(parents=True)
    (exports / 'export_std_msgsExport.cmake').write_text(text)
    return folder


@pytest.mark.parametrize(
    ('py', 'core'), [('310', '_core'), ('311', '_core'), ('312', 'core'), ('313', '_core')]
)
def test_header_folders_of_the_build_machine_become_ours(tmp_path, py, core):
    prefix = prefix_with(tmp_path, EXPORT.format(py=py, minor=py[1:], core=core))
    assert relocate_ros_wheels.relocate(prefix, '/our/python', '/our/numpy') == 1
    text = (prefix / 'share/std_msgs/cmake/export_std_msgsExport.cmake').read_text()
    assert '"/our/numpy;/our/python;${_IMPORT_PREFIX}/include/std_msgs"' in text


def test_a_second_time_changes_nothing(tmp_path):
    prefix = prefix_with(tmp_path, EXPORT.format(py='311', minor='11', core='_core'))
    relocate_ros_wheels.relocate(prefix, '/our/python', '/our/numpy')
    assert relocate_ros_wheels.relocate(prefix, '/our/python', '/our/numpy') == 0


def test_a_path_that_no_rule_covers_is_refused_by_name(tmp_path):
    prefix = prefix_with(tmp_path, 'set(_lib "/opt/python/cp311-cp311/lib/libyaml.so")\n')
    with pytest.raises(
        SystemExit, match=r'Export\.cmake: no rule to replace /opt/python/cp311-cp311/lib/libyaml\.so'
    ):
        relocate_ros_wheels.relocate(prefix, '/our/python', '/our/numpy')


@pytest.mark.ros
def test_the_running_environment_names_headers_that_exist():
    exports = list(Path(sys.prefix, 'share').rglob('*__rosidl_generator_pyExport.cmake'))
    if not exports:
        pytest.skip('ROS 2 does not come from wheels here')
    for export in exports:
        folders = re.findall(r'INTERFACE_INCLUDE_DIRECTORIES "([^"]*)"', export.read_text())
        absolute = [folder for entry in folders for folder in entry.split(';') if folder.startswith('/')]
        assert absolute
        assert all(Path(folder).is_dir() for folder in absolute), export
