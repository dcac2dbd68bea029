"""The right to real-time priority: whether it is there, and how to be without it."""

import ctypes
import os
import resource


def may_have_priority():
    child = os.fork()
    if child == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(51))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def without_right():
    """For the process that is about to start: neither the capability nor a limit that allows a priority."""
    cap_sys_nice, pr_capbset_drop = 23, 24
    ctypes.CDLL(None).prctl(pr_capbset_drop, cap_sys_nice, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
