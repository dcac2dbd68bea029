"""One thing that was looked at, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from flashrt_ros.errors import FlashRTError

_SUBJECT_WIDTH = 26


class Level(str, Enum):
    """note: nothing was looked at, or it does not matter here. warn: works, but not as well as it could."""

    OK = 'ok'
    NOTE = '-'
    WARN = 'WARN'
    FAIL = 'FAIL'


@dataclass(frozen=True)
class Finding:
    """fix: what to do; '' where there is nothing to do."""

    level: Level
    subject: str
    found: str
    fix: str = ''

    @property
    def line(self) -> str:
        fix = f'. Fix: {self.fix}' if self.fix else ''
        return ' '.join(
            f'{self.level.value:<4} {self.subject:<{_SUBJECT_WIDTH}} {self.found}{fix}'.splitlines()
        )


def of_error(subject: str, error: FlashRTError) -> Finding:
    """An error of ours already names its remedy."""
    return Finding(Level.FAIL, subject, f'{error.where}: {error.what}', error.fix)


def all_well(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed."""
    return all(finding.level is not Level.FAIL for finding in findings)
