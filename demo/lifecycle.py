"""Drives managed nodes through their transitions, as a launch file does on a robot."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.task import Future

CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
NAMES = {CONFIGURE: 'configure', ACTIVATE: 'activate'}
POLL_S = 0.05


class TransitionFailed(RuntimeError):
    """A node refused a transition, or did not answer; its log says why."""


class Lifecycle:
    """Transitions of one managed node. check: called while waiting; raises when waiting is in vain."""

    def __init__(self, node: Node, executor: Executor, name: str, check: Callable[[], None]) -> None:
        self.name = name
        self._executor, self._check = executor, check
        self._client = node.create_client(ChangeState, f'/{name}/change_state')

    def appear(self, timeout_s: float) -> None:
        """Wait until the node is there."""
        self._wait(self._client.service_is_ready, timeout_s, 'appear')

    def change(self, transition: int, timeout_s: float) -> None:
        """Raises TransitionFailed if the node does not succeed within `timeout_s` seconds."""
        future: Future[Any] = self._client.call_async(
            ChangeState.Request(transition=Transition(id=transition))
        )
        self._wait(future.done, timeout_s, NAMES[transition])
        if not future.result().success:
            raise TransitionFailed(f'{self.name} did not {NAMES[transition]}')

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            self._check()
            if time.monotonic() > deadline:
                raise TransitionFailed(f'{self.name} did not {what} within {timeout_s:g} s')
            self._executor.spin_once(timeout_sec=POLL_S)
