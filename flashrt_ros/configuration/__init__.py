"""The robot's YAML: one typed schema, from which validation, ROS parameters and documentation all follow."""

from flashrt_ros.configuration.check import check_against
from flashrt_ros.configuration.leaves import Leaf, leaves, with_values
from flashrt_ros.configuration.load import load_config
from flashrt_ros.configuration.schema import Camera, Joint, RobotConfig

__all__ = ['Camera', 'Joint', 'Leaf', 'RobotConfig', 'check_against', 'leaves', 'load_config', 'with_values']
