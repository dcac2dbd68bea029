"""How frames come in: the section `ingest`."""

from __future__ import annotations

from typing import Literal

from flashrt_ros.configuration.fields import Section, setting


class Intake(Section):
    source: Literal['auto', 'direct', 'typed'] = setting(
        'auto',
        description='How camera messages are taken: serialized, into memory of the node itself (direct), as '
        'rclpy deserializes them (typed), or direct where that works (auto); the log says which',
    )
    decode: Literal['cpu', 'gpu'] = setting(
        'cpu',
        description='What makes pixels of JPEGs: libjpeg-turbo (cpu) or nvJPEG (gpu, for policy.device '
        'cuda), faster, but blind to most damage inside a file (docs/cameras.md)',
    )
    max_frame_mib: int = setting(
        64, description='A larger camera message is dropped', unit='MiB', ge=1, le=1024
    )
