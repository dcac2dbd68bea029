"""How a demo ends: its exit code, and one line where it could not be run."""

from __future__ import annotations

import sys
from collections.abc import Callable

from demo.children import ChildDied
from demo.lifecycle import TransitionFailed
from flashrt_ros.errors import FlashRTError


def exit_code(run: Callable[[], bool]) -> int:
    """run: does the demo and says whether it went well."""
    try:
        return 0 if run() else 1
    except FlashRTError as error:
        print(f'\ndemo: {error}', file=sys.stderr)
        return 2
    except (ChildDied, TransitionFailed) as error:
        print(f'\ndemo: {error}', file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print('\ndemo: interrupted', file=sys.stderr)
        return 130
