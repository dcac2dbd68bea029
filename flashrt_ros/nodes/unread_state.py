"""Serialized joint states, read when somebody looks at them: few are ever used.

Mostly nothing but the stamp and the numbers differs from one to the next. What stands between the two is
compared as a whole, and only where it has changed is the message made into Python objects.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState

from flashrt_ros.errors import ObservationError
from flashrt_ros.ingest.cdr import MalformedMessage, positions_offset
from flashrt_ros.ingest.joints import STATE

_LITTLE_ENDIAN_CDR = b'\x00\x01'
_STAMPED = 12
"""Where the stamp of the header ends."""


class _Form(NamedTuple):
    """Of messages that have `between` behind their stamp: names, and where so many positions lie."""

    between: bytes
    names: list[str]
    offset: int


class StateReader:
    """Gives the joint states of one topic as messages that are read when somebody looks at them."""

    def __init__(self) -> None:
        self._form: _Form | None = None

    def unread(self, message: bytes) -> UnreadState:
        """message: a serialized sensor_msgs/JointState."""
        return UnreadState(self, message)

    def read(self, message: bytes) -> tuple[list[str], Any]:
        """Names and positions. Raises ObservationError for bytes that are no JointState."""
        form = self._form
        if form is not None and message.startswith(_LITTLE_ENDIAN_CDR) and self._is_of(form, message):
            return form.names, np.frombuffer(message, '<f8', len(form.names), form.offset)
        try:
            state = deserialize_message(message, JointState)
        except RuntimeError as error:
            raise ObservationError(
                f'{len(message)} bytes are no JointState: {error}', STATE, 'check who publishes it'
            ) from error
        self._form = _form_of(message, state)
        return list(state.name), state.position

    @staticmethod
    def _is_of(form: _Form, message: bytes) -> bool:
        complete = len(message) >= form.offset + 8 * len(form.names)
        return complete and message[_STAMPED : form.offset] == form.between


class UnreadState:
    """Has `name` and `position` of a JointState. Looking raises as `StateReader.read`."""

    def __init__(self, reader: StateReader, message: bytes) -> None:
        self._reader, self._bytes = reader, message
        self._state: tuple[list[str], Any] | None = None

    @property
    def name(self) -> list[str]:
        return self._read()[0]

    @property
    def position(self) -> Any:
        return self._read()[1]

    def _read(self) -> tuple[list[str], Any]:
        if self._state is None:
            self._state = self._reader.read(self._bytes)
        return self._state


def _form_of(message: bytes, state: JointState) -> _Form | None:
    """What messages like this one have in common; None where positions are not where they are expected."""
    if not message.startswith(_LITTLE_ENDIAN_CDR) or len(state.name) != len(state.position):
        return None
    try:
        at = positions_offset(message)
    except MalformedMessage:  # a name longer than any
        return None
    expected = np.asarray(state.position, np.float64).tobytes()
    if not expected or message[at : at + len(expected)] != expected:
        return None
    return _Form(message[_STAMPED:at], list(state.name), at)
