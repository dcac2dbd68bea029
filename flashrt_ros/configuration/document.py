"""Writes the table of docs/configuration.md from the schema.

`python -m flashrt_ros.configuration.document docs/configuration.md` brings the file up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flashrt_ros.configuration.leaves import Leaf, leaf_of, without_none
from flashrt_ros.configuration.schema import RobotConfig

BEGIN = '<!-- generated from flashrt_ros/configuration/schema.py: begin -->'
END = '<!-- generated from flashrt_ros/configuration/schema.py: end -->'

_PLACEHOLDERS = {'cameras': 'VIEW', 'joints': 'JOINT'}
_TYPE_NAMES = {float: 'number', int: 'integer', str: 'text'}


def table() -> str:
    """The markdown table of every key."""
    rows = ['| key | type | default | range | may change while running | meaning |', '|-|-|-|-|-|-|']
    for leaf, required in _schema_leaves(RobotConfig, ''):
        default = '**required**' if required else _shown(leaf.value)
        unit = f' [{leaf.unit}]' if leaf.unit else ''
        changes = 'yes' if leaf.dynamic else 'no'
        cells = (
            f'`{leaf.key}`',
            _type_name(leaf),
            default,
            _range(leaf),
            changes,
            leaf.description + unit,
        )
        rows.append(f'| {" | ".join(cells)} |')
    return '\n'.join(rows)


def updated(document: str) -> str:
    """The document with the table between its two markers replaced."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f'{before}{BEGIN}\n{table()}\n{END}{after}'


def _schema_leaves(section: type[BaseModel], prefix: str) -> Iterator[tuple[Leaf, bool]]:
    for name, field in section.model_fields.items():
        inner, key = _inner_section(field), f'{prefix}{name}'
        if inner is None:
            yield leaf_of(key, field, field.default), field.is_required()
        else:
            entry = f'{_PLACEHOLDERS[name]}.' if name in _PLACEHOLDERS else ''
            yield from _schema_leaves(inner, f'{key}.{entry}')


def _inner_section(field: FieldInfo) -> type[BaseModel] | None:
    """The section behind a field: itself, or the entries of its list or mapping."""
    annotation, _ = without_none(field.annotation)
    inner: Any = get_args(annotation)[-1] if get_origin(annotation) in (list, dict) else annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _type_name(leaf: Leaf) -> str:
    return f'list of {_TYPE_NAMES[leaf.item]}' if leaf.type is list else _TYPE_NAMES[leaf.type]


def _shown(value: Any) -> str:
    if value is None:
        return 'unset'
    return f'`{value}`' if value != '' else 'empty'


def _range(leaf: Leaf) -> str:
    if leaf.choices:
        return ', '.join(f'`{choice}`' for choice in leaf.choices)
    return (
        f'{leaf.minimum:g} to {leaf.maximum:g}'
        if leaf.minimum is not None and leaf.maximum is not None
        else ''
    )


if __name__ == '__main__':
    file = Path(sys.argv[1])
    file.write_text(updated(file.read_text(encoding='utf-8')), encoding='utf-8')
