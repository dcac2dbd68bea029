"""Says a trouble once when it begins, once when it changes, and once when it is over."""

from __future__ import annotations

from collections.abc import Hashable

from rclpy.impl.rcutils_logger import RcutilsLogger


class EdgeLog:
    """subject: what is in trouble, as the beginning of the sentence. current: the trouble now, or ''."""

    def __init__(self, logger: RcutilsLogger, subject: str) -> None:
        self._logger, self._subject = logger, subject
        self._key: Hashable = None
        self.current = ''

    def trouble(self, key: Hashable, sentence: str) -> None:
        """key: identifies the trouble; the sentence may change (ages, counts) while it is the same one."""
        if key != self._key:
            self._logger.warning(f'{self._subject}: {sentence}')
        self._key, self.current = key, sentence

    def clear(self) -> None:
        if self.current:
            self._logger.info(f'{self._subject}: over ({self.current})')
        self._key, self.current = None, ''
