"""Middleware and shared memory: does an image get from one process to another at all?

Fast DDS's own segment of 512 KiB loses images of 640 x 480 between processes, which looks like a dead camera.
"""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

from flashrt_ros.doctor.finding import Finding, Level

FAST_DDS = 'rmw_fastrtps'
PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
"""The second is that of Fast DDS 2 (Jazzy and before), the first that of Fast DDS 3."""

OLD_DISTRIBUTIONS = ('humble', 'iron', 'jazzy')
LARGE_DATA = 'LARGE_DATA'
SEGMENT = 16 << 20
"""Bytes that hold some images of 720p for the slowest reader."""

SHARED_MEMORY = Path('/dev/shm')
_PROFILE_FIX = (
    'export {variable}=$(ros2 pkg prefix flashrt_ros)/share/flashrt_ros/config/fastdds_large_images.xml for '
    'cameras and nodes (the launch files do it for the nodes)'
)


def transport_findings(environment: Mapping[str, str], rmw: str) -> Iterator[Finding]:
    """environment: variables of this process, which should be those of the nodes. rmw: name in use."""
    scope = environment.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    domain = environment.get('ROS_DOMAIN_ID', '0')
    yield Finding(Level.OK, 'middleware', f'{rmw}, domain {domain}, discovery {scope}')
    if rmw.startswith(FAST_DDS):
        yield _segment(environment)
    else:
        note = f'{rmw} has its own; the profile in config/ is for Fast DDS'
        yield Finding(Level.NOTE, 'shared-memory segment', note)
    yield _shared_memory()


def _segment(environment: Mapping[str, str]) -> Finding:
    subject = 'shared-memory segment'
    chosen = environment.get('FASTDDS_BUILTIN_TRANSPORTS', '')
    if chosen.startswith(LARGE_DATA):
        return Finding(Level.OK, subject, f'FASTDDS_BUILTIN_TRANSPORTS={chosen}')
    old = environment.get('ROS_DISTRO', '') in OLD_DISTRIBUTIONS
    variable = PROFILE_VARIABLES[1 if old else 0]
    fix = _PROFILE_FIX.format(variable=variable)
    path = environment.get(variable) or environment.get(PROFILE_VARIABLES[1])
    if not path:
        return Finding(Level.FAIL, subject, f'512 KiB, the default: {variable} is not set', fix)
    try:
        size = segment_size(Path(path))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        return Finding(Level.FAIL, subject, f'{path} cannot be read ({error})', fix)
    if size < SEGMENT:
        return Finding(Level.FAIL, subject, f'{size >> 10} KiB in {path}', fix)
    return Finding(Level.OK, subject, f'{size >> 20} MiB ({path})')


def segment_size(profile: Path) -> int:
    """Bytes of the largest shared-memory segment that a Fast DDS profile asks for; the default if of none."""
    sizes = [512 << 10]
    for descriptor in ElementTree.parse(profile).iter():
        if _name(descriptor) == 'transport_descriptor':
            fields = {_name(field): (field.text or '').strip() for field in descriptor}
            if fields.get('type') == 'SHM' and 'segment_size' in fields:
                sizes.append(int(fields['segment_size']))
    return max(sizes)


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition('}')[2]


def _shared_memory() -> Finding:
    subject = str(SHARED_MEMORY)
    if not SHARED_MEMORY.is_dir() or not os.access(SHARED_MEMORY, os.W_OK):
        fix = 'mount it; in a container give --ipc=host or --shm-size=1g'
        return Finding(Level.FAIL, subject, 'is not there, or cannot be written', fix)
    usage = shutil.disk_usage(SHARED_MEMORY)
    found = f'{usage.free >> 20} MiB free of {usage.total >> 20}'
    if usage.free < 4 * SEGMENT:
        fix = (
            'remove what dead processes left (fastdds shm clean), or give more (--shm-size=1g in a container)'
        )
        return Finding(Level.WARN, subject, found, fix)
    return Finding(Level.OK, subject, found)
