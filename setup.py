"""The ROS-free part for `pip install .`: models, engine, ingest, control, evaluation, kernels and examples.

colcon builds the messages, without which the nodes do not run (CMakeLists.txt); pyproject.toml holds the
metadata. This file only carries `kernels/` and `config/`, which lie beside the package, into it.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = {'kernels': ('*.cu', '*.cuh'), 'config': ('*.yaml', '*.xml')}
"""Folder beside the package -> the files in it that go into the package, under the same folder name."""


class BuildWithResources(build_py):
    def run(self) -> None:
        super().run()
        for folder, patterns in CARRIED.items():
            target = Path(self.build_lib, 'flashrt_ros', folder)
            target.mkdir(parents=True, exist_ok=True)
            for file in (file for pattern in patterns for file in Path(folder).glob(pattern)):
                self.copy_file(str(file), str(target / file.name))


setup(cmdclass={'build_py': BuildWithResources})
