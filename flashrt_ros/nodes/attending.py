"""A thread of its own for one subscription: what comes is taken at once, and the executor sleeps on.

An rclpy executor makes its set of what to wait for anew for every message, from all that its nodes have, and
serves one input after the other: the frame of a second camera waits for all that is done with the first, and
other threads for Python's lock.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.subscription import Subscription

from flashrt_ros.scheduling import wake_exactly

_LOOK_NS = 500_000_000
"""How often a thread to which nothing comes looks whether context and process still live."""

_COMPLAIN_S = 5.0


class Attendant:
    """Calls `take` in its thread whenever the subscription has a message, and the callbacks of its events.

    subscription: of a callback group that no executor attends to (`Polled`). take: takes one message; an
    exception is logged, and the next message may be fine. `stop` it before the subscription is destroyed;
    with the context it ends by itself.
    """

    def __init__(self, node: Node, subscription: Subscription[Any], take: Callable[[], None]) -> None:
        self._subscription, self._take, self._topic = subscription, take, subscription.topic_name
        self._context, self._logger = node.context, node.get_logger()
        self._guard = GuardCondition(None, None, context=node.context)
        self._stopping = False
        # No daemon: Python would end it inside the middleware, which ends the process with an abort.
        self._thread = threading.Thread(target=self._run, name=f'take {self._topic}')
        self._thread.start()
        node.context.on_shutdown(self._wake)

    def stop(self) -> None:
        """Return when the take that may be running is over."""
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        self._stopping = True
        self._guard.trigger()

    def _run(self) -> None:
        wake_exactly()
        handle, events = self._subscription.handle, self._subscription.event_handlers
        try:
            with ExitStack() as kept:
                kept.enter_context(handle)
                kept.callback(self._ended)
                for entity in (self._guard.handle, self._context.handle, *events):
                    kept.enter_context(entity)
                wait_set = rclpy_implementation.WaitSet(1, 1, 0, 0, 0, len(events), self._context.handle)
                kept.enter_context(wait_set)
                self._attend(wait_set)
        except InvalidHandle:
            self._logger.info(f"nobody takes '{self._topic}' any more: its subscription was destroyed")
        except Exception:
            if self._context.ok():  # else the context went while it was waited in
                self._logger.fatal(f"nobody takes '{self._topic}' any more: {traceback.format_exc()}")

    def _ended(self) -> None:
        """Nothing is taken any more, and the subscription still lives."""

    def _goes_on(self) -> bool:
        return not self._stopping and self._context.ok() and threading.main_thread().is_alive()

    def _attend(self, wait_set: Any) -> None:
        while self._goes_on():
            wait_set.clear_entities()
            message = wait_set.add_subscription(self._subscription.handle)
            wait_set.add_guard_condition(self._guard.handle)
            self._wait(wait_set, _LOOK_NS, message)

    def _wait(self, wait_set: Any, timeout_ns: int, message: int | None = None) -> None:
        """Wait for what is in the set and for events, and do what there is to do.

        message: index in the set of the subscription, if that is waited for.
        """
        events = self._subscription.event_handlers
        for event in events:
            event.add_to_wait_set(wait_set)
        wait_set.wait(timeout_ns)
        if message is not None and wait_set.is_ready('subscription', message):
            self._safely(self._take)
        for event in events:
            if event.is_ready(wait_set):
                self._safely(event.callback, event.take_data())

    def _safely(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception:
            self._logger.error(
                f"'{self._topic}': {traceback.format_exc()}", throttle_duration_sec=_COMPLAIN_S
            )


class WaitingAttendant(Attendant):
    """The same with a `take` that waits for its message by itself, for _LOOK_NS or so.

    wake: ends that wait, or the next one. close: called in the thread at its end, while the subscription
    still lives. Events are looked for from time to time.
    """

    def __init__(
        self,
        node: Node,
        subscription: Subscription[Any],
        take: Callable[[], None],
        wake: Callable[[], None],
        close: Callable[[], None],
    ) -> None:
        self._wake_take, self._close = wake, close
        self._closing, self._closed = threading.Lock(), False
        super().__init__(node, subscription, take)

    def _wake(self) -> None:
        super()._wake()
        with self._closing:
            if not self._closed:
                self._wake_take()

    def _ended(self) -> None:
        with self._closing:
            self._closed = True
            self._close()

    def _attend(self, wait_set: Any) -> None:
        look_ns = 0
        while self._goes_on():
            self._safely(self._take)
            if time.monotonic_ns() >= look_ns:
                wait_set.clear_entities()
                self._wait(wait_set, 0)
                look_ns = time.monotonic_ns() + _LOOK_NS
