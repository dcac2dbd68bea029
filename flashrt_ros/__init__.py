"""Vision-language-action policies on a ROS 2 robot, at real-time latency."""

__version__ = '0.1.0'
