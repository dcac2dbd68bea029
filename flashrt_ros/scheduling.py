"""What Linux and Python are asked for so that a thread wakes in time: priority, CPUs, exact timers."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import struct
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SWITCH_S = 2e-4
"""How long a Python thread that wants to run waits before it interrupts another; Python's own is 5 ms, two
and a half periods at 500 Hz."""

TURN_NS = 100_000
"""How long a thread without real-time priority asks to run at a time, the least that Linux grants."""

_PR_SET_TIMERSLACK = 29

_SCHED_ATTR = struct.Struct('=IIQiIQQQII')
"""struct sched_attr of include/uapi/linux/sched/types.h: size, policy, flags, nice, priority, runtime, ..."""

_SETATTR_GETATTR = {'x86_64': (314, 315), 'aarch64': (274, 275)}
"""Numbers of the system calls sched_setattr and sched_getattr (the kernel's syscall tables)."""

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


def priority_is_granted(priority: int) -> bool:
    """Whether `prioritise`, and `outrank` after it, would succeed. Tried in a thread that ends with it."""
    granted = []

    def attempt() -> None:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority + 1))
            granted.append(True)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return bool(granted)


def missing_cpu(cpus: Sequence[int]) -> int | None:
    """The first of these CPUs that this machine does not have."""
    return min(set(cpus) - set(range(os.cpu_count() or 1)), default=None)


def run_on(cpus: Sequence[int]) -> str:
    """Keep all threads of this process, and those they start, on these CPUs. Returns '' or why not."""
    missing = missing_cpu(cpus)
    if missing is not None:
        return f'CPU {missing} does not exist (there are {os.cpu_count()}, counted from 0): correct it'
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
    name = names.get(policy, str(policy))
    if priority:
        return f'{name} {priority}'
    turn_ns = turn_of(thread)
    return f'{name}, turns of {turn_ns * 1e-6:g} ms' if turn_ns else name


def take_short_turns() -> None:
    """Let all threads of this process, and those they start, run `TURN_NS` at a time, and the sooner for it.

    No right is needed. Linux gives the next turn to the thread whose turn is to end first, and a short one
    ends early (EEVDF, 6.12 and later; older kernels do not look at it). Threads with real-time priority, and
    all on a machine whose system calls are not known here, stay as they are.
    """
    calls = _SETATTR_GETATTR.get(platform.machine())
    if calls is None:
        return
    for thread in _threads():
        try:
            usual = os.sched_getscheduler(thread) == os.SCHED_OTHER
            nice = os.getpriority(os.PRIO_PROCESS, thread)
        except ProcessLookupError:
            continue
        if usual:
            wanted = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, TURN_NS, 0, 0, 0, 0)
            _system_call(calls[0], thread, wanted)


def turn_of(thread: int = 0) -> int:
    """How long a thread without real-time priority runs at a time [ns]; 0 where Linux does not say."""
    calls = _SETATTR_GETATTR.get(platform.machine())
    found = ctypes.create_string_buffer(_SCHED_ATTR.size)
    if calls is None or _system_call(calls[1], thread, found, len(found)) != 0:
        return 0
    return int(_SCHED_ATTR.unpack(found.raw)[5])


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


def _system_call(number: int, *arguments: Any) -> int:
    """0, or -1 where it failed. The last argument of both calls made here, flags, is 0."""
    return int(ctypes.CDLL(None).syscall(number, *arguments, 0))


def _threads() -> list[int]:
    return [int(entry.name) for entry in Path('/proc/self/task').iterdir()]
