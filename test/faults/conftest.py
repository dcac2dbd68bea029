"""Fixtures of the fault campaign: the robot of `test/nodes`, with limits, and a table of what was seen."""

import pytest
from nodes.conftest import checkpoint, graph, robot_yaml  # noqa: F401
from nodes.test_processes import start  # noqa: F401

from faults.campaign import Campaign, Report


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
