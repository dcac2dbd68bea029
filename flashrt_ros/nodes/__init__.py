"""The ROS 2 nodes, the only folder that imports rclpy. Each is thin: messages in, core code, messages out."""

from flashrt_ros.nodes.middleware import require_middleware

# First of all: without a middleware, importing rclpy ends the process with a message that names no remedy.
require_middleware()
