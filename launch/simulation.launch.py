"""A simulated robot and the policy that drives it, on the simulated clock.

    ros2 launch flashrt_ros simulation.launch.py

The robot lays its task out anew when asked: ros2 service call /sim_node/reset std_srvs/srv/Trigger
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(get_package_share_directory('flashrt_ros'))


def generate_launch_description() -> LaunchDescription:
    chosen = {name: LaunchConfiguration(name) for name in ('robot', 'seed', 'speed', 'command_topic')}
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / 'launch' / 'policy.launch.py')),
        launch_arguments={'use_sim_time': 'true', 'autostart': 'true'}.items(),
    )
    robot = Node(package='flashrt_ros', executable='sim_node', parameters=[chosen], output='screen')
    return LaunchDescription([*arguments(), robot, policy])


def arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument('robot', default_value='so101', description='Simulated robot: so101 or aloha'),
        DeclareLaunchArgument('seed', default_value='0', description='Of the first layout of the task'),
        DeclareLaunchArgument('speed', default_value='1.0', description='Times real time; 0.0 for the most'),
        DeclareLaunchArgument(
            'command_topic',
            default_value='/so101/joint_commands',
            description='Where the robot takes commands from: output.topic of the configuration',
        ),
        DeclareLaunchArgument(
            'config',
            default_value=str(SHARE / 'config' / 'so101_simulation.yaml'),
            description='YAML of the robot',
        ),
    ]
