"""Whether Linux gives the streamer the priority and the CPUs that the configuration asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator

from flashrt_ros.configuration.scheduling import Scheduling
from flashrt_ros.doctor.finding import Finding, Level
from flashrt_ros.scheduling import HOW_TO_GRANT, missing_cpu, priority_is_granted


def scheduling_findings(wanted: Scheduling) -> Iterator[Finding]:
    """Tried for this process, which has the streamer's rights where both are started by the same means."""
    priority, cpus = wanted.streamer_priority, wanted.streamer_cpus
    subject = 'streamer_priority'
    if priority is None:
        yield Finding(
            Level.NOTE, subject, 'none is asked for; it matters where policy or cameras keep all cores busy'
        )
    elif priority_is_granted(priority):
        yield Finding(Level.OK, subject, f'{priority} is granted')
    else:
        yield Finding(Level.WARN, subject, f'{priority} is denied, commands may come late', HOW_TO_GRANT)
    if cpus is not None:
        missing = missing_cpu(cpus)
        if missing is None:
            yield Finding(Level.OK, 'streamer_cpus', ', '.join(str(cpu) for cpu in sorted(cpus)))
        else:
            fix = f'choose from 0 to {(os.cpu_count() or 1) - 1}'
            yield Finding(Level.WARN, 'streamer_cpus', f'CPU {missing} does not exist', fix)
