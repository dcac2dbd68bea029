"""Looks now and then, on real time, at what must not depend on a loop's ticks; in a thread of its own.

A timer would wake the executor, which makes its set of what to wait for anew each time: that takes longer
than the look, and happens just when a command is due, too.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from rclpy.node import Node

from flashrt_ros.nodes.tick_gate import TickGate
from flashrt_ros.scheduling import wake_exactly

_COMPLAIN_S = 5.0


class Watchdog:
    """Calls `look` every `every_s`, where the gate lets it. What it raises is logged; the next look follows.

    `stop` it before what it looks at is destroyed; with the context it ends by itself.
    """

    def __init__(self, node: Node, every_s: float, look: Callable[[], None], gate: TickGate) -> None:
        self._context, self._logger = node.context, node.get_logger()
        self._every_s, self._look, self._gate = every_s, look, gate
        self._stopping = threading.Event()
        # No daemon: Python would end it inside the middleware, which ends the process with an abort.
        self._thread = threading.Thread(target=self._run, name='watchdog')
        self._thread.start()

    def stop(self) -> None:
        """Return when the look that may be under way is over."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        wake_exactly()
        while self._context.ok() and threading.main_thread().is_alive():
            if self._stopping.wait(self._every_s):
                return
            with self._gate.between():
                self._safely()

    def _safely(self) -> None:
        try:
            self._look()
        except Exception:
            if self._context.ok():  # else the context went meanwhile
                self._logger.error(
                    f'the watchdog: {traceback.format_exc()}', throttle_duration_sec=_COMPLAIN_S
                )
