"""Lines that say what the demo is doing, and since when; on a terminal the last one moves."""

from __future__ import annotations

import sys
import time

SHOW_EVERY_S = 2.0
SHOW_EVERY_ON_TERMINAL_S = 0.2


class Progress:
    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._shown = 0.0
        self._moving = False

    def step(self, text: str) -> None:
        """A new line, with the seconds since the beginning."""
        self._end_line()
        print(f'{self._elapsed()} {text}', flush=True)

    def show(self, text: str) -> None:
        """How far it has come: replaces the line on a terminal, else a new line every two seconds."""
        terminal = sys.stdout.isatty()
        now = time.monotonic()
        if now - self._shown < (SHOW_EVERY_ON_TERMINAL_S if terminal else SHOW_EVERY_S):
            return
        self._shown = now
        if terminal:
            print(f'\r{self._elapsed()} {text}\033[K', end='', flush=True)
            self._moving = True
        else:
            print(f'{self._elapsed()} {text}', flush=True)

    def _elapsed(self) -> str:
        return f'[{time.monotonic() - self._begin:5.1f} s]'

    def _end_line(self) -> None:
        if self._moving:
            print(flush=True)
            self._moving = False
