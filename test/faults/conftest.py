"""Fixtures of the fault campaign: the robot of `test/nodes`, with limits, and a table of what was seen."""

import os

import pytest
from nodes.conftest import checkpoint, graph, robot_yaml  # noqa: F401

from faults.campaign import IN_NAMESPACE, Campaign, Report


@pytest.fixture
def ros_domain(ros_domain, monkeypatch):
    """In a network namespace, which nothing can leave, by the transports of the profile alone.

    With LOCALHOST rmw_fastrtps takes its own, shared memory among them, which no cut of a network reaches.
    """
    if os.environ.get(IN_NAMESPACE):
        monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
        monkeypatch.setenv('ROS_STATIC_PEERS', '127.0.0.1')
    return ros_domain


@pytest.fixture(scope='session')
def report(pytestconfig):
    """Collects a row for each fault, and prints the table when all are done."""
    rows = Report()
    yield rows
    print('\n' + rows.table())


@pytest.fixture
def campaign(graph, start, robot_yaml, report, request):  # noqa: F811
    """Policy and streamer as processes, active, and the robot moving."""

    def begin(changes=None, **options):
        name = request.node.name.removeprefix('test_').replace('_', ' ')
        return Campaign(graph, start, robot_yaml, report, name, changes or {}, **options)

    return begin
