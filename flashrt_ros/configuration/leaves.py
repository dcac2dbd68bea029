"""The configuration as a flat list of leaves with dotted names: what the ROS parameters are made from.

Entries go by their name: `cameras.base_0_rgb.topic`, `robot.joints.gripper.scale`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flashrt_ros.configuration.fields import suggestion
from flashrt_ros.configuration.load import parse_config
from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.errors import ConfigError


@dataclass(frozen=True)
class Leaf:
    """One value. minimum and maximum are set for every number. item: the type of what a list holds."""

    key: str
    type: type
    value: Any
    optional: bool
    description: str
    unit: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    dynamic: bool
    item: Any = str

    @property
    def section(self) -> str:
        return self.key.split('.')[0]


def leaves(config: RobotConfig) -> list[Leaf]:
    """Every value of the configuration, in the order of the schema."""
    return list(_of_section(config, ''))


def with_values(config: RobotConfig, values: Mapping[str, Any], source: str = 'parameters') -> RobotConfig:
    """The configuration with some leaves replaced, validated as a whole. Paths start in the working folder.

    Raises ConfigError for an unknown key or an impossible value.
    """
    known = {leaf.key for leaf in leaves(config)}
    data = config.model_dump()
    for key, value in values.items():
        if key not in known:
            raise ConfigError(
                f'there is no such key; {suggestion(key, sorted(known))}', f'{source}: {key}', 'correct it'
            )
        _assign(data, key.split('.'), value)
    return parse_config(data, source, Path.cwd())


def leaf_of(key: str, field: FieldInfo, value: Any) -> Leaf:
    """The leaf of one schema field. value: what it is set to (or its default)."""
    annotation, optional = without_none(field.annotation)
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    bounds = {
        name: getattr(item, name) for item in field.metadata for name in ('ge', 'le') if hasattr(item, name)
    }
    return Leaf(
        key=key,
        type=str if choices else get_origin(annotation) or annotation,
        value=value,
        optional=optional,
        description=field.description or '',
        unit=str(extra.get('unit', '')),
        minimum=bounds.get('ge'),
        maximum=bounds.get('le'),
        choices=choices,
        dynamic=bool(extra.get('dynamic')),
        item=get_args(annotation)[0] if get_origin(annotation) is list else str,
    )


def without_none(annotation: Any) -> tuple[Any, bool]:
    """The type behind `X | None`, and whether None was allowed."""
    if get_origin(annotation) in (Union, UnionType):
        chosen = next(choice for choice in get_args(annotation) if choice is not type(None))
        return get_args(chosen)[0] if get_origin(chosen) is Annotated else chosen, True
    return annotation, False


def _of_section(section: BaseModel, prefix: str) -> Iterator[Leaf]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        key = f'{prefix}{name}'
        if isinstance(value, BaseModel):
            yield from _of_section(value, f'{key}.')
        elif isinstance(value, dict):
            for entry, inner in value.items():
                yield from _of_section(inner, f'{key}.{entry}.')
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for inner in value:
                yield from (
                    leaf for leaf in _of_section(inner, f'{key}.{inner.name}.') if not _is_name(leaf, inner)
                )
        else:
            yield leaf_of(key, field, value)


def _is_name(leaf: Leaf, entry: Any) -> bool:
    """The name of a list entry is part of its dotted key, and so no leaf of its own."""
    return leaf.key.endswith(f'.{entry.name}.name')


def _assign(data: Any, path: list[str], value: Any) -> None:
    for part in path[:-1]:
        data = (
            next(entry for entry in data if entry['name'] == part) if isinstance(data, list) else data[part]
        )
    data[path[-1]] = value
