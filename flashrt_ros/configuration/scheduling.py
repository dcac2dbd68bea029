"""The section `scheduling`: the streamer's CPUs and priority, and how early it begins a command."""

from __future__ import annotations

from pydantic import model_validator

from flashrt_ros.configuration.fields import Section, problem, setting


class Scheduling(Section):
    streamer_priority: int | None = setting(
        None,
        description='Real-time priority (SCHED_FIFO) of action_streamer; its command thread is one above. '
        'Needs a right that users do not have by default (docs/execution.md); unset: the usual scheduler',
        ge=1,
        le=98,
    )
    streamer_cpus: list[int] | None = setting(
        None, description='CPUs that action_streamer may run on, counted from 0; unset: all'
    )

    streamer_lead_s: float = setting(
        0.0005,
        description='Time before a command is due at which action_streamer makes it, so that it only has to '
        'be sent then; never more than a quarter of the control period; 0: it is made when it is due',
        unit='s',
        ge=0.0,
        le=0.01,
    )

    @model_validator(mode='after')
    def _cpus_are_numbers_of_cpus(self) -> Scheduling:
        cpus = self.streamer_cpus
        if cpus is not None and (not cpus or min(cpus) < 0 or len(set(cpus)) != len(cpus)):
            raise problem('streamer_cpus', f'{cpus} is no set of CPUs', 'list each CPU once, from 0')
        return self
