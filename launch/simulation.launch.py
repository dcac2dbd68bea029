"""A simulated robot and the policy that drives it, on the simulated clock.

    ros2 launch flashrt_ros simulation.launch.py

The robot lays its task out anew when asked: ros2 service call /sim_node/reset std_srvs/srv/Trigger
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory('flashrt_ros'))


def generate_launch_description() -> LaunchDescription:
    texts = {
        name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in ('robot', 'command_topic')
    }
    # The node itself says what is wrong with a number, and names it.
    numbers = {name: LaunchConfiguration(name) for name in ('seed', 'speed')}
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'policy.launch.py')),
        launch_arguments={'use_sim_time': 'true', 'autostart': 'true'}.items(),
    )
    robot = Node(
        package='flashrt_ros',
        executable='sim_node',
        parameters=[texts | numbers],
        output='screen',
        on_exit=[OpaqueFunction(function=end)],
    )
    # The robot comes second: it, too, needs the transport that policy.launch.py sets for what follows.
    return LaunchDescription([*arguments(), policy, robot])


def end(context: LaunchContext) -> list[Shutdown]:
    """Without the robot there is nothing to do; but a launch that is ending cannot be ended again."""
    return [] if context.is_shutdown else [Shutdown(reason='the simulated robot has ended')]


def arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument(
            'robot', default_value='so101', choices=['so101', 'aloha'], description='Simulated robot'
        ),
        DeclareLaunchArgument('seed', default_value='0', description='Of the first layout of the task'),
        DeclareLaunchArgument('speed', default_value='1.0', description='Times real time; 0 for the most'),
        DeclareLaunchArgument(
            'command_topic',
            default_value='',
            description='Where the robot takes commands from, output.topic of the configuration; '
            'empty: /ROBOT/joint_commands',
        ),
        DeclareLaunchArgument(
            'config',
            default_value=[f'{SHARE}/config/', LaunchConfiguration('robot'), '_simulation.yaml'],
            description='YAML of the robot; that of aloha needs a checkpoint',
        ),
    ]
