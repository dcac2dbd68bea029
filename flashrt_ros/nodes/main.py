"""Runs one node in a process; SIGINT or SIGTERM tear it down while its publishers still work."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from flashrt_ros.errors import FlashRTError

_WAKE_S = 1.0
"""How often the executor wakes for nothing. Seldom: to make its set of what to wait for anew takes it longer
than most work, and holds up the other threads."""


class EndingNode(Protocol):
    """A node that can be ended in order. ending: why, once it is about to."""

    ending: str

    def end(self) -> None: ...
    def get_logger(self) -> Any: ...
    def destroy_node(self) -> None: ...


def run(make_node: Callable[[], EndingNode], args: list[str] | None) -> int:
    """Run the node until it is told to end. Returns the exit status; a user's error is one line on stderr."""
    stopping = StopRequest()
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        print(f'flashrt_ros: ROS 2 cannot start: {error}', file=sys.stderr)
        return 1
    try:
        node = make_node()
    except FlashRTError as error:
        print(f'flashrt_ros: {error}', file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    try:
        _spin(node, stopping)
    finally:
        node.end()
        node.destroy_node()
        rclpy.try_shutdown()
        stopping.ignore_more()
    return 0


def _spin(node: EndingNode, stopping: StopRequest) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    # Python cannot run a signal's handler while the executor waits in C.
    stopping.at_signal(lambda: executor.create_task(lambda: None))
    while rclpy.ok() and not stopping.requested:
        executor.spin_once(timeout_sec=_WAKE_S)
    node.ending = stopping.requested or 'the context was shut down'
    node.get_logger().info(f'ending: {node.ending}')
    executor.shutdown()


class StopRequest:
    """Set by SIGINT or SIGTERM. rclpy's own handlers would shut the context down under the node's feet."""

    def __init__(self) -> None:
        self.requested = ''
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def at_signal(self, call: Callable[[], Any]) -> None:
        """Call this in another thread at the first signal, wherever the main thread is."""

        def wait() -> None:
            if os.read(self._reader, 1):
                call()

        threading.Thread(target=wait, name='signals', daemon=True).start()

    def ignore_more(self) -> None:
        """While the interpreter ends, a second one would kill a node that ended well.

        launch repeats a SIGINT that the whole group has got, and sends a SIGTERM after five seconds; on
        a busy machine it takes as long to tear torch down.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
