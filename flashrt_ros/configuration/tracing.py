"""Whether the stages of the work are marked for a profiler: the section `tracing`."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationInfo, field_validator, model_validator

from flashrt_ros.configuration.fields import Section, problem, resolved_path, setting


class Tracing(Section):
    to: Literal['nvtx', 'file'] | None = setting(
        None,
        description='Mark the stages of every tick: as NVTX ranges for Nsight Systems (nvtx; needs the '
        'package nvtx), or in a trace that Perfetto and Chrome show (file); unset: not at all',
    )
    folder: str | None = setting(
        None, description='file: folder of the traces, one NODE.json a node; relative like checkpoint'
    )

    @field_validator('folder')
    @classmethod
    def _relative_to_the_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        return resolved_path(value, info)

    @model_validator(mode='after')
    def _a_file_has_a_place(self) -> Tracing:
        if self.to == 'file' and self.folder is None:
            raise problem('folder', 'the traces have no place to go', "give a folder, or choose to: 'nvtx'")
        return self
