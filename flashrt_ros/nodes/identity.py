"""Two nodes of one name in a graph would answer each other's services: refuse to be the second."""

from __future__ import annotations

import time

from rclpy.node import Node

from flashrt_ros.errors import ConfigError

DISCOVERY_S = 0.5
"""Nodes on one host have found each other by then."""


def refuse_name_clash(node: Node, started: float) -> None:
    """Raise ConfigError if another node has the same full name. started: its monotonic time of creation."""
    time.sleep(max(0.0, started + DISCOVERY_S - time.monotonic()))
    own = (node.get_name(), node.get_namespace())
    count = node.get_node_names_and_namespaces().count(own)
    if count > 1:
        raise ConfigError(
            f"{count} nodes are called '{node.get_fully_qualified_name()}'",
            'ROS graph',
            'end the other one, or start this one with another namespace (--ros-args -r __ns:=/robot2)',
        )
