"""A recorded bag into the policy, in simulated time: `ros2 bag play --clock` beside policy.launch.py.

    ros2 launch flashrt_ros replay.launch.py bag:=/path/to/bag config:=/path/to/robot.yaml

The bag starts when the policy is active, so that nothing of it is missed while weights load; when it ends, so
does the launch.
"""

import shlex
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import Event, EventHandler, LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.events.lifecycle import StateTransition

POLICY_LAUNCH = Path(get_package_share_directory('flashrt_ros')) / 'launch' / 'policy.launch.py'


def generate_launch_description() -> LaunchDescription:
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(POLICY_LAUNCH)),
        launch_arguments={'use_sim_time': 'true', 'autostart': 'true'}.items(),
    )
    return LaunchDescription([*arguments(), OpaqueFunction(function=player), policy])


def arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument('bag', description='Folder or file of the rosbag2 recording'),
        DeclareLaunchArgument(
            'rate', default_value='1.0', description='Speed: 2.0 plays twice as fast as recorded'
        ),
        DeclareLaunchArgument(
            'clock_hz',
            default_value='200',
            description='Rate of /clock; commands come no oftener, so at least the control rate',
        ),
        DeclareLaunchArgument(
            'delay',
            default_value='3.0',
            description='Seconds before the first message, in which subscribers are found: what is sent '
            'earlier reaches nobody',
        ),
        DeclareLaunchArgument(
            'play_arguments',
            default_value='',
            description="Further arguments of ros2 bag play, for example '--topics /joint_states'",
        ),
    ]


def player(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Handlers that start the bag when the policy is active, and end the launch with the bag."""
    further = shlex.split(LaunchConfiguration('play_arguments').perform(context))
    play = ExecuteProcess(
        cmd=[
            'ros2',
            'bag',
            'play',
            LaunchConfiguration('bag'),
            '--clock',
            LaunchConfiguration('clock_hz'),
            '--rate',
            LaunchConfiguration('rate'),
            '--delay',
            LaunchConfiguration('delay'),
            *further,
        ],
        output='screen',
    )
    ended = Shutdown(reason='the bag has ended')
    return [
        RegisterEventHandler(EventHandler(matcher=policy_became_active, entities=[play], handle_once=True)),
        RegisterEventHandler(OnProcessExit(target_action=play, on_exit=[ended])),
    ]


def policy_became_active(event: Event) -> bool:
    return (
        isinstance(event, StateTransition)
        and event.goal_state == 'active'
        and event.action.node_name.endswith('/policy_node')
    )
