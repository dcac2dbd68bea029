"""Joint limits of a robot description (URDF), the text that is sent as robot_description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from flashrt_ros.errors import ConfigError

MOVABLE = ('revolute', 'prismatic', 'continuous')


@dataclass(frozen=True)
class JointLimits:
    """lower, upper: rad or m. velocity: rad/s or m/s. None where the description says nothing."""

    lower: float | None = None
    upper: float | None = None
    velocity: float | None = None


def read_limits(text: str, joints: Sequence[str], source: str) -> dict[str, JointLimits]:
    """Limits of the named joints. source: where the text came from, for errors.

    Raises ConfigError for text that is no URDF, a joint that is not in it, or limits that make no sense.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ConfigError(f'this is not XML ({error})', source, 'give a URDF') from None
    if root.tag != 'robot':
        raise ConfigError(f'the root is <{root.tag}>, not <robot>', source, 'give a URDF')
    found = {element.get('name', ''): element for element in root.findall('joint')}
    missing = [joint for joint in joints if joint not in found]
    if missing:
        raise ConfigError(
            f"it has no joint '{missing[0]}'", source, 'name the joints in robot.joints as the URDF does'
        )
    return {joint: _limits(found[joint], f'{source}: joint {joint}') for joint in joints}


def _limits(element: ElementTree.Element, where: str) -> JointLimits:
    kind, limit = element.get('type', ''), element.find('limit')
    if kind not in MOVABLE:
        raise ConfigError(f"it is of type '{kind}'", where, f'drive joints of type {", ".join(MOVABLE)}')
    if limit is None:
        return JointLimits()
    velocity = _number(limit, 'velocity', where)
    if velocity is not None and velocity <= 0:
        velocity = None  # exporters write 0 for "not known"
    if kind == 'continuous':
        return JointLimits(velocity=velocity)
    lower, upper = _number(limit, 'lower', where), _number(limit, 'upper', where)
    # URDF gives an absent bound the value 0.
    lower, upper = lower or 0.0, upper or 0.0
    if lower >= upper:
        raise ConfigError(f'lower {lower:g} is not below upper {upper:g}', where, 'correct its limits')
    return JointLimits(lower, upper, velocity)


def _number(limit: ElementTree.Element, name: str, where: str) -> float | None:
    text = limit.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"its {name} is '{text}'", where, 'give a number')
    return value
