"""Turns what pydantic found into one ConfigError that names file, dotted key and remedy."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flashrt_ros.configuration.fields import PROBLEM, suggestion
from flashrt_ros.errors import ConfigError

Location = Sequence[str | int]


def config_error(error: ValidationError, source: str, root: type[BaseModel]) -> ConfigError:
    """One error for the first problem, with the keys of the others. source: the file, or its stand-in."""
    problems = error.errors(include_url=False)
    what, key, fix = _sentence(problems[0], root)
    others = sorted({_dotted(entry['loc']) or 'the whole' for entry in problems[1:]} - {key})
    if others:
        what += f' (wrong as well: {", ".join(others)})'
    return ConfigError(what, f'{source}: {key}' if key else source, fix)


def _sentence(entry: ErrorDetails, root: type[BaseModel]) -> tuple[str, str, str]:
    """What is wrong, at which dotted key, and how to fix it."""
    location, context, value = entry['loc'], entry.get('ctx', {}), entry['input']
    key = _dotted(location)
    kind = entry['type']
    if kind == PROBLEM:
        return context['what'], _dotted((*location, *filter(None, [context['key']]))), context['fix']
    if kind == 'missing':
        return 'the key is missing', key, 'add it; docs/configuration.md describes every key'
    if kind == 'extra_forbidden':
        known = _keys_at(root, location[:-1])
        hint = suggestion(str(location[-1]), known)
        return f"there is no key '{location[-1]}'; {hint}", key, 'correct or remove it'
    if kind == 'literal_error':
        return f'{value!r} is not one of: {context["expected"]}', key, 'choose one of them'
    if kind in _BOUNDS:
        word, bound = _BOUNDS[kind]
        return (
            f'{value!r} is {word} {context[bound]:g}',
            key,
            f'give a value that is not {word} {context[bound]:g}',
        )
    if kind == 'string_pattern_mismatch':
        return (
            f'{value!r} is not a name',
            _without_key_marker(key),
            'use letters, digits and underscores, a letter first',
        )
    if kind in ('too_short', 'string_too_short'):
        return 'it is empty', key, 'give at least one entry'
    return f'{value!r}: {entry["msg"][:1].lower()}{entry["msg"][1:]}', key, 'correct the value'


_BOUNDS = {
    'greater_than_equal': ('below', 'ge'),
    'less_than_equal': ('above', 'le'),
}


def _dotted(location: Location) -> str:
    dotted = ''
    for part in location:
        dotted += f'[{part}]' if isinstance(part, int) else f'.{part}'
    return _without_key_marker(dotted.lstrip('.'))


def _without_key_marker(key: str) -> str:
    """Pydantic marks an error in a mapping's key, not its value, with a last part '[key]'."""
    return key.removesuffix('.[key]')


def _keys_at(root: type[BaseModel], location: Location) -> list[str]:
    """The keys that the section at this location knows."""
    section: Any = root
    for part in location:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(part)].annotation
        else:
            section = get_args(section)[-1]
    section = _unwrapped(section)
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _unwrapped(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(choice for choice in get_args(annotation) if choice is not type(None))
    return annotation
