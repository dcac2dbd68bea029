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
    decode: Literal['auto', 'cpu', 'gpu'] = setting(
        'auto',
        description='What makes pixels of JPEGs: libjpeg-turbo (cpu), nvJPEG (gpu, for policy.device cuda), '
        'or what was measured to be faster (auto, docs/cameras.md); the log says which',
    )
    max_frame_mib: int = setting(
        64, description='A larger camera message is dropped', unit='MiB', ge=1, le=1024
    )
