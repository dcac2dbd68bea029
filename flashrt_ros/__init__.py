"""Vision-language-action policies on a ROS 2 robot, at real-time latency."""

from pkgutil import extend_path

__version__ = '0.1.0'

# The compiled messages (flashrt_ros.msg) may lie under another prefix than these sources: beside a working
# tree that is run as it is, or beside a pip installation. Where colcon installed both, this adds nothing.
__path__ = extend_path(__path__, __name__)
