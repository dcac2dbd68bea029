"""The ROS-free part for `pip install .`: models, engine, ingest, control, evaluation, `flashrt`, their files.

colcon builds the messages, without which the nodes do not run (CMakeLists.txt); pyproject.toml holds the
metadata. This file only carries `kernels/`, `config/` and `msg/`, which lie beside the package, into it.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = {
    'kernels': ('kernels', ('*.cu', '*.cuh')),
    'config': ('config', ('*.yaml', '*.xml')),
    'msg': ('interfaces', ('*.msg',)),
}
"""Folder beside the package -> where in the package its files go, and which. `msg` in the package would be
the Python modules of a colcon build."""


class BuildWithResources(build_py):
    def run(self) -> None:
        super().run()
        for folder, (name, patterns) in CARRIED.items():
            target = Path(self.build_lib, 'flashrt_ros', name)
            target.mkdir(parents=True, exist_ok=True)
            for file in (file for pattern in patterns for file in Path(folder).glob(pattern)):
                self.copy_file(str(file), str(target / file.name))


setup(cmdclass={'build_py': BuildWithResources})
