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

from demo.children import Child

CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
DEACTIVATE = Transition.TRANSITION_DEACTIVATE
NAMES = {CONFIGURE: 'configure', ACTIVATE: 'activate', DEACTIVATE: 'deactivate'}
POLL_S = 0.05


class TransitionFailed(RuntimeError):
    """A node refused a transition, or did not answer; the text has the end of its log."""


class Lifecycle:
    """Transitions of the managed node in `child`. check: called while waiting; may raise."""

    def __init__(self, node: Node, executor: Executor, child: Child, check: Callable[[], None]) -> None:
        self.name = child.name
        self._child = child
        self._executor, self._check = executor, check
        self._client: Any = node.create_client(ChangeState, f'/{child.name}/change_state')

    def appear(self, timeout_s: float) -> None:
        """Wait until the node is there."""
        self._wait(self._client.service_is_ready, timeout_s, 'appear')

    def change(self, transition: int, timeout_s: float) -> None:
        """Raises TransitionFailed if the node does not succeed within `timeout_s` seconds."""
        future: Future[Any] = self._client.call_async(
            ChangeState.Request(transition=Transition(id=transition))
        )
        self._wait(future.done, timeout_s, NAMES[transition])
        answer = future.result()
        if answer is None or not answer.success:
            raise self._failed(f'did not {NAMES[transition]}')

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            self._check()
            if time.monotonic() > deadline:
                raise self._failed(f'did not {what} within {timeout_s:g} s')
            self._executor.spin_once(timeout_sec=POLL_S)

    def _failed(self, what: str) -> TransitionFailed:
        log = f'The end of {self._child.log}:\n\n{self._child.last_lines()}'
        return TransitionFailed(f'{self.name} {what}. {log}')
