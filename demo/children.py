"""The demo's processes: each with a log file, ended together, and never outliving the demo."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOG_LINES = 25
"""Lines of a crashed process's log that are shown."""

GRACE_S = 5.0
"""From the request to end to the end by force."""


class ChildDied(RuntimeError):
    """A process ended that should not have; the text has the end of its log."""

    def __init__(self, child: Child) -> None:
        super().__init__(
            f'{child.name} ended with exit code {child.process.returncode}. The end of {child.log}:\n\n'
            + child.last_lines()
        )


class Child:
    """One process, `python -m module arguments`, in this environment."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path) -> None:
        self.name, self.log = name, log
        self._file: IO[bytes] = log.open('wb')
        # In a session of its own: Ctrl-C goes to the demo alone, which then ends the processes in order.
        self.process = subprocess.Popen(
            [sys.executable, '-u', '-m', module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def last_lines(self) -> str:
        lines = self.log.read_text(encoding='utf-8', errors='replace').splitlines()
        return '\n'.join(f'  {line}' for line in lines[-LOG_LINES:]) or '  (nothing)'

    def ask_to_end(self) -> None:
        if self.running:
            self.process.send_signal(signal.SIGINT)

    def end(self, deadline: float) -> None:
        """Wait until `deadline` (of time.monotonic), then kill."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._file.close()


class Family:
    """All processes of the demo. All are ended by `end`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []

    def start(self, name: str, module: str, arguments: Sequence[str] = ()) -> Child:
        with _interrupts_deferred():  # An interrupt in between would leave a process that nobody knows.
            child = Child(name, module, arguments, self._logs / f'{name}.log')
            self._children.append(child)
        return child

    def check(self, finished: Sequence[Child] = ()) -> None:
        """Raise ChildDied for a process that ended, unless it is one of `finished` and ended well."""
        for child in self._children:
            if not child.running and (child not in finished or child.process.returncode):
                raise ChildDied(child)

    def end(self) -> None:
        """Ask them all to end, the last started first, and kill those that do not."""
        for child in reversed(self._children):
            child.ask_to_end()
        deadline = time.monotonic() + GRACE_S
        for child in reversed(self._children):
            child.end(deadline)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the block is over. Main thread only."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
