"""Two nodes of one name in a graph would answer each other's services: refuse to be the second."""

from __future__ import annotations

import time

from rclpy.node import Node

from flashrt_ros.errors import ConfigError

DISCOVERY_S = 0.5
"""Nodes on one host have found each other by then."""

LEASE_S = 22.0
"""A node that was killed stays in the graph for as long: Fast DDS's lease of 20 s, and a margin."""


def refuse_name_clash(node: Node, started: float) -> None:
    """Raise ConfigError if another node has the same full name, and is not just the memory of a dead one.

    started: monotonic time of the node's creation.
    """
    time.sleep(max(0.0, started + DISCOVERY_S - time.monotonic()))
    if _count(node) > 1:
        node.get_logger().warning(
            f'another node has this name; in case it is dead, waiting up to {LEASE_S:g} s'
        )
    deadline = time.monotonic() + LEASE_S
    while _count(node) > 1:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{_count(node)} nodes are called '{node.get_fully_qualified_name()}'",
                'ROS graph',
                'end the other one, or start this one in another namespace (--ros-args -r __ns:=/robot2)',
            )
        time.sleep(0.1)


def _count(node: Node) -> int:
    return node.get_node_names_and_namespaces().count((node.get_name(), node.get_namespace()))
