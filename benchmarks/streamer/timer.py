"""How late this machine wakes a process that only waits for the streamer's deadlines: nothing can be better.

Run as a process of its own, prints what `Found` holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np

from benchmarks.streamer.setting import PERIOD_NS
from benchmarks.streamer.trial import Found, busy_processes
from flashrt_ros.scheduling import wake_exactly


def bare_timer(busy: int, seconds: float) -> Found:
    """A trial of it, beside so many busy processes."""
    command = [sys.executable, '-m', 'benchmarks.streamer.timer', str(seconds)]
    with busy_processes(busy):
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    late_ns, cpu_s = json.loads(output)
    return Found(np.array(late_ns), len(late_ns) / seconds, cpu_s / len(late_ns))


def wait_for_deadlines(seconds: float) -> list[int]:
    """Nanoseconds after each deadline that was not over before it was waited for."""
    wake_exactly()
    late, due, end = [], time.monotonic_ns() + PERIOD_NS, time.monotonic_ns() + round(seconds * 1e9)
    while due < end:
        remaining = due - time.monotonic_ns()
        if remaining > 0:
            time.sleep(remaining * 1e-9)
            late.append(time.monotonic_ns() - due)
        due += PERIOD_NS
    return late


if __name__ == '__main__':
    found = wait_for_deadlines(float(sys.argv[1]))
    print(json.dumps([found, time.process_time()]))
