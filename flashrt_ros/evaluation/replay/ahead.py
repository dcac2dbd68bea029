"""Runs an iterator in a thread of its own, some items ahead of whoever uses them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar('Item')

_POLL_S = 0.1


class _End:
    """The last thing in the queue. error: what ended the iterator, if it did not end by itself."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@contextmanager
def ahead(items: Iterable[Item], depth: int) -> Iterator[Iterator[Item]]:
    """The same items in the same order, up to `depth` of them made before they are asked for.

    An error of the iterator is raised where its item would have come. Leaving the context ends the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopping = threading.Event()

    def put(item: Any) -> None:
        while not stopping.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        error = None
        try:
            for item in items:
                put(item)
                if stopping.is_set():
                    return
        except BaseException as raised:
            error = raised
        put(_End(error))

    def taken() -> Iterator[Item]:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    thread = threading.Thread(target=work, name='reading ahead', daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopping.set()
        thread.join()
