"""The watchdog's thread, and signals that reach a node while its executor sleeps."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rclpy.context import Context
from rclpy.node import Node

from flashrt_ros.nodes.tick_gate import TickGate
from flashrt_ros.nodes.watchdog import Watchdog
from nodes.graph import wait_until

pytestmark = pytest.mark.ros

MS = 1_000_000


@pytest.fixture
def node(graph):
    node = Node('watched', context=graph.context)
    yield node
    node.destroy_node()


def watching():
    return [thread for thread in threading.enumerate() if thread.name == 'watchdog']


def test_it_looks_in_time_though_no_executor_spins_and_a_tick_never_ends(node):
    looks, gate = [], TickGate(5 * MS)
    gate.expect(time.monotonic_ns())
    watchdog = Watchdog(node, 0.02, lambda: looks.append(time.monotonic()), gate)
    wait_until(lambda: len(looks) > 20)
    watchdog.stop()
    assert (looks[20] - looks[0]) / 20 == pytest.approx(0.026, abs=0.012)
    assert not watching()


def test_it_looks_behind_a_tick_and_not_before_it(node):
    looks, gate = [], TickGate(60_000 * MS)
    watchdog = Watchdog(node, 0.01, lambda: looks.append(time.sleep(0.002)), gate)
    wait_until(lambda: len(looks) > 1)
    gate.expect(time.monotonic_ns())  # a tick is under way from now on
    time.sleep(0.05)
    count = len(looks)
    time.sleep(0.1)
    assert len(looks) == count
    gate.expect(None)
    wait_until(lambda: len(looks) > count + 2)
    watchdog.stop()


def test_what_it_raises_is_told_and_the_next_look_follows(node, capfd):
    looks = []

    def look():
        looks.append(0)
        raise ValueError('it is bad')

    watchdog = Watchdog(node, 0.005, look, TickGate(MS))
    wait_until(lambda: len(looks) > 10)
    watchdog.stop()
    assert capfd.readouterr().err.count('ValueError: it is bad') == 1  # throttled


def test_it_ends_with_the_context():
    context = Context()
    context.init()
    node = Node('alone', context=context)
    Watchdog(node, 0.005, lambda: None, TickGate(MS))
    assert watching()
    node.destroy_node()
    context.shutdown()
    wait_until(lambda: not watching(), what='the end of the thread')


IN_C = """
import ctypes, os, signal, threading
from flashrt_ros.nodes.main import StopRequest
stopping, (reader, writer) = StopRequest(), os.pipe()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.siginterrupt(number, False)  # the read below goes on, as the executor's wait does
stopping.at_signal(lambda: (print('woken', flush=True), os.write(writer, b'.')))
threading.Thread(target=lambda: threading.Event().wait(20) or os.write(writer, b'!'), daemon=True).start()
print('waits', flush=True)
byte = ctypes.create_string_buffer(1)
ctypes.CDLL(None).read(reader, byte, 1)
print(stopping.requested, byte.raw)
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_in_another_thread_while_the_main_one_waits_in_c(number):
    with subprocess.Popen([sys.executable, '-c', IN_C], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'waits\n'
        time.sleep(0.2)  # until it does
        os.kill(process.pid, number)
        assert process.stdout.readline() == 'woken\n'
        assert process.stdout.read() == f"{number.name} b'.'\n"
        assert process.wait(10) == 0


NODE = """
import rclpy, sys, threading, time, os, signal
from rclpy.node import Node
from flashrt_ros.nodes import main
main._WAKE_S = 3600.0

class Quiet(Node):
    ending = ''
    def __init__(self):
        super().__init__('quiet')
    def end(self):
        print('ended', self.ending)

threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
sys.exit(main.run(Quiet, None))
"""


def test_a_signal_ends_a_node_whose_executor_would_sleep_for_an_hour():
    ended = subprocess.run([sys.executable, '-c', NODE], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == 'ended SIGTERM\n'
