"""Fixtures for all rooms: a ROS graph that no other test, run or person can see."""

import fcntl
import os
import random
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

DOMAINS = range(1, 100)
"""ROS domains whose ports lie below the ephemeral range of Linux."""


@contextmanager
def reserved_domain():
    """A ROS_DOMAIN_ID that no other test on this machine uses meanwhile, also of another run."""
    folder = Path(tempfile.gettempdir()) / 'flashrt_ros_domains'
    folder.mkdir(exist_ok=True)
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        with open(folder / str(domain), 'w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise RuntimeError(f'all {len(DOMAINS)} ROS domains are reserved in {folder}')


@pytest.fixture
def ros_domain(monkeypatch):
    """A ROS domain of its own on the loopback interface, also for the processes that a test starts."""
    with reserved_domain() as domain:
        monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
        monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        yield domain


def pytest_configure(config):
    # Also for tests that forget the fixture: nothing ever leaves the loopback interface.
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
