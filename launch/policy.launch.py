"""The policy and its action streamer on a robot, brought to active.

    ros2 launch flashrt_ros policy.launch.py config:=/path/to/robot.yaml checkpoint:=/path/to/pi05

Both are managed lifecycle nodes, each a process of its own. Transitions are driven by launch events, which
every ROS 2 distribution has. `ros2 launch flashrt_ros policy.launch.py --show-args` lists the arguments.
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

SHARE = Path(get_package_share_directory('flashrt_ros'))
FAST_DDS_2 = ('humble', 'iron', 'jazzy')
"""Distributions whose Fast DDS reads the older variable only; the Fast DDS after it warns about that one."""
PROFILE_VARIABLE = (
    'FASTRTPS_DEFAULT_PROFILES_FILE'
    if os.environ.get('ROS_DISTRO') in FAST_DDS_2
    else 'FASTDDS_DEFAULT_PROFILES_FILE'
)
OVERRIDES = {'checkpoint': 'policy.checkpoint', 'device': 'policy.device', 'precision': 'policy.precision'}
"""Launch argument -> the ROS parameter that it sets if it is given."""


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*arguments(), *transport(), OpaqueFunction(function=managed_nodes)])


def arguments() -> list[DeclareLaunchArgument]:
    default_config = str(SHARE / 'config' / 'so101.yaml')
    return [
        DeclareLaunchArgument(
            'config',
            default_value=default_config,
            description='YAML file that describes the robot: docs/configuration.md',
        ),
        DeclareLaunchArgument(
            'checkpoint',
            default_value='',
            description="Folder of the policy's checkpoint; empty: as the YAML says",
        ),
        DeclareLaunchArgument(
            'device',
            default_value='',
            description='Where the policy runs, cpu or cuda; empty: as the YAML says',
        ),
        DeclareLaunchArgument(
            'precision',
            default_value='',
            description='Arithmetic: fp32, bf16 or fp8; empty: as the YAML says',
        ),
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of both nodes'),
        DeclareLaunchArgument(
            'use_sim_time',
            default_value='false',
            choices=['true', 'false'],
            description='Take time from /clock: for simulators and bags',
        ),
        DeclareLaunchArgument(
            'autostart',
            default_value='true',
            choices=['true', 'false'],
            description='Configure and activate both nodes; false: leave it to a lifecycle manager',
        ),
        DeclareLaunchArgument(
            'log_level',
            default_value='info',
            choices=['debug', 'info', 'warn', 'error', 'fatal'],
            description='Least severity that both nodes log',
        ),
    ]


def transport() -> list[LaunchDescriptionEntity]:
    """Fast DDS with room for images, unless the user chose a profile; for all that is launched after it."""
    if PROFILE_VARIABLE in os.environ:
        return [LogInfo(msg=f'{PROFILE_VARIABLE} is set to {os.environ[PROFILE_VARIABLE]}: left as it is')]
    return [SetEnvironmentVariable(PROFILE_VARIABLE, str(SHARE / 'config' / 'fastdds_large_images.xml'))]


def managed_nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    parameters = {
        'config': text('config'),
        'use_sim_time': ParameterValue(LaunchConfiguration('use_sim_time'), value_type=bool),
    }
    for argument, parameter in OVERRIDES.items():
        if LaunchConfiguration(argument).perform(context):
            parameters[parameter] = text(argument)
    nodes = [managed_node(name, parameters) for name in ('policy_node', 'action_streamer')]
    # Handlers come before the nodes: an event that happens before its handler is registered is lost.
    return [*(handler for node in nodes for handler in transitions(node)), *nodes]


def text(argument: str) -> ParameterValue:
    """A string even where it looks like a number: a checkpoint folder may be called 2026."""
    return ParameterValue(LaunchConfiguration(argument), value_type=str)


def managed_node(name: str, parameters: dict[str, ParameterValue]) -> LifecycleNode:
    return LifecycleNode(
        package='flashrt_ros',
        executable=name,
        name=name,
        namespace=LaunchConfiguration('namespace'),
        parameters=[parameters],
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        output='screen',
        emulate_tty=True,
    )


def transitions(node: LifecycleNode) -> list[RegisterEventHandler]:
    """Configure when the process has started, activate when configured, say so when it refused."""
    autostart = IfCondition(LaunchConfiguration('autostart'))
    configure = change_state(node, Transition.TRANSITION_CONFIGURE)
    activate = change_state(node, Transition.TRANSITION_ACTIVATE)
    refused = LogInfo(msg=f'{node.node_executable} refused its configuration: its own message above says why')
    return [
        RegisterEventHandler(OnProcessStart(target_action=node, on_start=[configure]), condition=autostart),
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=node,
                start_state='configuring',
                goal_state='inactive',
                entities=[activate],
            ),
            condition=autostart,
        ),
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=node,
                start_state='configuring',
                goal_state='unconfigured',
                entities=[refused],
            )
        ),
    ]


def change_state(node: LifecycleNode, transition: int) -> EmitEvent:
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))
