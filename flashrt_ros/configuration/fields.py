"""Building blocks of the schema: sections, settings with unit and range, topics, paths, named problems."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

PROBLEM = 'flashrt_problem'
"""Type of the errors made by `problem`; their context holds 'key', 'what' and 'fix'."""

_TOPIC = re.compile(r'^(~/|/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*$')


class Section(BaseModel):
    """A mapping in the YAML: unknown keys are refused, numbers finite, nothing is converted in silence."""

    model_config = ConfigDict(extra='forbid', frozen=True, strict=True, allow_inf_nan=False)


def setting(
    default: Any = ...,
    *,
    description: str,
    unit: str = '',
    ge: float | None = None,
    le: float | None = None,
    min_length: int | None = None,
    dynamic: bool = False,
) -> Any:
    """A key of a section. unit: of the value, in words. dynamic: may change while the node runs."""
    extra: dict[str, Any] = {'unit': unit, 'dynamic': dynamic}
    return Field(
        default, description=description, ge=ge, le=le, min_length=min_length, json_schema_extra=extra
    )


def problem(key: str, what: str, fix: str) -> PydanticCustomError:
    """An error that pydantic cannot word by itself. key: relative to the section that raises it."""
    return PydanticCustomError(PROBLEM, '{what}', {'key': key, 'what': what, 'fix': fix})


def suggestion(name: str, known: Sequence[str]) -> str:
    """'did you mean ...' where a known name is close, else the list of known names."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'" if close else f'known here: {", ".join(sorted(known))}'


def _topic(value: str) -> str:
    if not _TOPIC.match(value):
        raise problem(
            '', f"'{value}' is not a ROS topic name", "use a name such as '/camera/front/image_raw'"
        )
    return value


Topic = Annotated[str, AfterValidator(_topic)]
"""A ROS topic name: absolute, relative to the node's namespace, or private with '~/'."""


def resolved_path(value: str | None, info: ValidationInfo) -> str | None:
    """Resolve a relative path against the folder given as validation context, or the working folder."""
    if value is None:
        return None
    if not value:
        raise problem('', 'the path is empty', 'give a path, or remove the key where it is optional')
    folder = Path((info.context or {}).get('folder', '.'))
    return str((folder / Path(value).expanduser()).resolve())
