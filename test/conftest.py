"""Fixtures for all rooms: a ROS graph that no other test, run or person can see."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

DOMAINS = range(215, 233)
"""The upper of the two ranges of ROS domains whose ports Linux does not give away; people use the lower."""


@contextmanager
def reserved_domain():
    """A ROS_DOMAIN_ID that no other test on this machine uses meanwhile, also of another run.

    The one unused for longest comes first: a process that was killed haunts its domain for a while.
    """
    folder = Path(tempfile.gettempdir()) / 'flashrt_ros_domains'
    folder.mkdir(exist_ok=True)
    files = [folder / str(domain) for domain in DOMAINS]
    for file in sorted(files, key=lambda file: file.stat().st_mtime if file.exists() else 0.0):
        with open(file, 'a') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield int(file.name)
            file.touch()
            return
    raise RuntimeError(f'all {len(DOMAINS)} ROS domains are reserved in {folder}')


@pytest.fixture
def ros_domain(monkeypatch):
    """A ROS domain of its own on the loopback interface, also for the processes that a test starts."""
    with reserved_domain() as domain:
        monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
        monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        yield domain


@pytest.fixture
def start(ros_domain, tmp_path):
    """Starts a node as a process; its output goes to `NAME.log`. All are ended with the test.

    in_child: called in the process before the node begins.
    """
    processes = []

    def start(name, *parameters, remaps=(), in_child=None, **environment):
        options = [word for parameter in parameters for word in ('-p', parameter)]
        options += [word for remap in remaps for word in ('-r', remap)]
        command = [sys.executable, '-m', f'flashrt_ros.nodes.{name}', '--ros-args', *options]
        with open(tmp_path / f'{name}.log', 'wb') as log:
            environment = {**os.environ, **environment}
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, preexec_fn=in_child
            )
        process.output = lambda: (tmp_path / f'{name}.log').read_text()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(10)


# Cores that others use, too, make single examples slow; how long one takes is never the subject.
hypothesis.settings.register_profile('busy machine', deadline=None)
hypothesis.settings.load_profile('busy machine')


def pytest_configure(config):
    # Also for tests that forget the fixture: nothing ever leaves the loopback interface.
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'


# Whoever runs the tests in the background of a script has them ignore Ctrl-C, and processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
