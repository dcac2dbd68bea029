"""config/controllers against what ros2_control declares: names, types, and the values that matter here.

From the *_parameters.yaml and sources of ros-controls/ros2_controllers and ros2_control, branches kilted
(0f8eb14) and jazzy (ed360c9), read on 2026-11-28. Only what both know is here.
"""

from pathlib import Path

import pytest
import yaml

from flashrt_ros.configuration import load_config

ROOT = Path(__file__).parents[2]
CONTROLLERS = sorted((ROOT / 'config' / 'controllers').glob('*.yaml'))
SO101 = load_config(ROOT / 'config' / 'so101.yaml')

DECLARED = {
    'joint_trajectory_controller/JointTrajectoryController': {
        'update_rate': int,  # of every controller: controller_interface_base.cpp
        'joints': list,
        'command_joints': list,
        'command_interfaces': list,
        'state_interfaces': list,
        'allow_partial_joints_goal': bool,
        'interpolate_from_desired_state': bool,
        'allow_integration_in_goal_trajectories': bool,
        'set_last_command_interface_value_as_state_on_activation': bool,
        'action_monitor_rate': float,
        'interpolation_method': str,
        'allow_nonzero_velocity_at_trajectory_end': bool,
        'cmd_timeout': float,
        'constraints.stopped_velocity_tolerance': float,
        'constraints.goal_time': float,
    },
    'forward_command_controller/ForwardCommandController': {'joints': list, 'interface_name': str},
}
"""A double given as an integer is refused by ROS, so types must be exact."""


def flat(parameters, prefix=''):
    for key, value in parameters.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


@pytest.fixture(params=CONTROLLERS, ids=lambda file: file.stem)
def controller(request):
    """(name, type, parameters)"""
    data = yaml.safe_load(request.param.read_text())
    manager = data.pop('controller_manager')['ros__parameters']
    assert type(manager.pop('update_rate')) is int
    ((name, parameters),) = data.items()
    assert manager == {name: {'type': manager[name]['type']}}
    return name, manager[name]['type'], parameters['ros__parameters']


def test_every_parameter_is_declared_with_this_type(controller):
    _, kind, parameters = controller
    for key, value in flat(parameters):
        assert type(value) is DECLARED[kind][key], key


def test_joints_are_those_of_the_example_in_its_order(controller):
    _, _, parameters = controller
    assert tuple(parameters['joints']) == SO101.joint_names


def test_the_topic_is_one_that_the_controller_subscribes_to(controller):
    """JTC: on_configure subscribes to ~/joint_trajectory; forward: ForwardControllersBase to ~/commands."""
    name, kind, _ = controller
    topic = {'joint_trajectory_controller': 'joint_trajectory', 'forward_command_controller': 'commands'}
    file = next(file for file in CONTROLLERS if file.stem == name)
    assert f'topic: /{name}/{topic[kind.split("/")[0]]}' in file.read_text()


def test_the_trajectory_controller_does_what_the_streamer_counts_on():
    file = ROOT / 'config' / 'controllers' / 'joint_trajectory_controller.yaml'
    parameters = yaml.safe_load(file.read_text())['joint_trajectory_controller']['ros__parameters']
    # validate_jtc_parameters.hpp: position alone is a combination that is allowed; one_of splines, none.
    assert parameters['command_interfaces'] == ['position']
    assert parameters['state_interfaces'] == ['position', 'velocity']
    assert parameters['interpolation_method'] == 'splines'
    # ::update: false begins every trajectory, and in step mode every command, at the measured position.
    assert parameters['interpolate_from_desired_state'] is True
    # ::update with set_hold_position: a timeout and a tolerance command the measured position.
    assert not parameters['cmd_timeout']
    assert 'constraints' not in parameters
