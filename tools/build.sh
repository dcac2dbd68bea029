#!/bin/bash
# Builds this package with colcon against the ROS 2 wheels of an environment: tools/build.sh VENV BUILD INSTALL
# The installation holds links to the working tree, so that only messages and the list of files need a new build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$(realpath "$1") build=$2 install=$3

# The environment lies inside the source folder, and CMake refuses to export targets whose headers (numpy's) lie inside
# theirs. Seen through this link, the source folder is another one.
mkdir -p "$build/workspace"
ln -sfn "$PWD" "$build/workspace/flashrt_ros"

# No trace of a ROS 2 distribution that the shell may have set up.
unset PYTHONPATH LD_LIBRARY_PATH COLCON_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PATH=$venv/bin:$PATH AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv

# Files that the source has no more would stay.
rm -rf "$install"/lib/python*/site-packages/flashrt_ros/kernels

log=$build/build.log
if ! colcon --log-base "$build/log" build \
    --paths "$build/workspace/flashrt_ros" --build-base "$build" --install-base "$install" \
    --merge-install --symlink-install \
    --cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$venv/bin/python" --no-warn-unused-cli \
    > "$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "The build failed; the whole log is in $log" >&2
    exit 1
fi
echo "Built into $install"
