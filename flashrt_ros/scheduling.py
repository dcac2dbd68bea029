"""What Linux and Python are asked for so that a thread wakes in time: priority, CPUs, exact timers."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

SWITCH_S = 2e-4
"""How long a Python thread that wants to run waits before it interrupts another; Python's own is 5 ms, two
and a half periods at 500 Hz."""

_PR_SET_TIMERSLACK = 29

HOW_TO_GRANT = (
    "give the user 'rtprio 99' in /etc/security/limits.d and log in anew, or the systemd unit "
    'LimitRTPRIO=99, or the container --cap-add sys_nice (docs/execution.md), or remove '
    'scheduling.streamer_priority'
)


def prioritise(priority: int) -> str:
    """Real-time priority (SCHED_FIFO, 1 to 99) for all threads of this process and those they start.

    All, because a thread with priority would else wait for one without that holds Python's lock or the
    middleware's. Returns '' or why it was denied, and how to grant it; then some threads may have it.
    """
    wanted = os.sched_param(priority)
    for thread in _threads():
        try:
            os.sched_setscheduler(thread, os.SCHED_FIFO, wanted)
        except PermissionError:
            return f'real-time priority {priority} is denied: {HOW_TO_GRANT}'
        except ProcessLookupError:
            continue
    return ''


def outrank(above: int) -> None:
    """Give the calling thread a priority one higher; above: of `prioritise`, which must have succeeded."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(above + 1))


def run_on(cpus: Sequence[int]) -> str:
    """Keep all threads of this process, and those they start, on these CPUs. Returns '' or why not."""
    missing = sorted(set(cpus) - set(range(os.cpu_count() or 1)))
    if missing:
        return f'CPU {missing[0]} does not exist (there are {os.cpu_count()}, counted from 0): correct it'
    for thread in _threads():
        try:
            os.sched_setaffinity(thread, cpus)
        except ProcessLookupError:
            continue
        except OSError as error:
            return f'CPUs {list(cpus)} are not allowed here ({error.strerror}): allow them, or choose others'
    return ''


def describe(thread: int = 0) -> str:
    """How a thread is scheduled, in words; 0 is the calling one."""
    policy = os.sched_getscheduler(thread)
    names = {os.SCHED_OTHER: 'usual', os.SCHED_FIFO: 'SCHED_FIFO', os.SCHED_RR: 'SCHED_RR'}
    priority = os.sched_getparam(thread).sched_priority
    return f'{names.get(policy, str(policy))} {priority}' if priority else names.get(policy, str(policy))


def wake_exactly() -> None:
    """Let the calling thread sleep without the 50 us that Linux may add to save power."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)


def switch_quickly() -> None:
    """Let Python threads of this process take turns after SWITCH_S."""
    sys.setswitchinterval(SWITCH_S)


def spare_collector() -> None:
    """Collect garbage now, and never again look at what is left: a full collection of it takes 0.1 s."""
    gc.collect()
    gc.freeze()


def _threads() -> list[int]:
    return [int(entry.name) for entry in Path('/proc/self/task').iterdir()]
