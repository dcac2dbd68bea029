"""Commands as serialized messages: all but the numbers is the same in each, and is serialized once.

To build and to serialize a message takes longer than all that comes before it in a tick.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message

from flashrt_ros.control.motion import Command
from flashrt_ros.nodes.commands import MakeCommand

_STAMP, _STAMP_AT = struct.Struct('<iI'), 4
"""Of a header at the beginning of a message, behind the four bytes that name the encoding."""

_SECOND = 1_000_000_000


class _Form(NamedTuple):
    """What stands before and behind the positions. stamped: whether the header's stamp is the command's."""

    before: bytes
    behind: bytes
    stamped: bool

    def filled(self, positions: np.ndarray, now_ns: int) -> bytes:
        if not self.stamped:
            return self.before + positions.tobytes() + self.behind
        stamp, rest = _STAMP.pack(*divmod(now_ns, _SECOND)), self.before[_STAMP_AT + _STAMP.size :]
        return self.before[:_STAMP_AT] + stamp + rest + positions.tobytes() + self.behind


def frame_maker(make: MakeCommand, joints: int) -> MakeCommand:
    """What gives the message of `make` in bytes, as the middleware would put it on the wire.

    Where the middleware serializes in a way that is not known here, it is `make` itself.
    """
    moving, resting = (_form(make, joints, zero_velocity) for zero_velocity in (False, True))
    if moving is None or resting is None:
        return make

    def frame(command: Command, now_ns: int) -> bytes:
        return (resting if command.zero_velocity else moving).filled(command.positions, now_ns)

    return frame


def _form(make: MakeCommand, joints: int, zero_velocity: bool) -> _Form | None:
    """Found in one command, and tried with another. What pads a message is not always the same."""
    first, second = (
        Command(np.linspace(low, low + 1.0, joints), zero_velocity) for low in (0.123456, -2.654321)
    )
    then_ns, now_ns = 123_456_789_012, 1_700_000_000_987_654_321
    numbers, frame = first.positions.tobytes(), _on_the_wire(make(first, then_ns))
    at = frame.find(numbers)
    if at < 0:
        return None
    stamped = frame[_STAMP_AT : _STAMP_AT + _STAMP.size] == _STAMP.pack(*divmod(then_ns, _SECOND))
    form = _Form(frame[:at], frame[at + len(numbers) :], stamped)
    return form if _reads_as(form.filled(second.positions, now_ns), make(second, now_ns)) else None


def _on_the_wire(message: Any) -> bytes:
    """rmw_fastrtps serializes into as many bytes as it may take at most, and leaves rubbish at their end."""
    frame = bytes(serialize_message(message))
    while _reads_as(frame[:-1], message):
        frame = frame[:-1]
    return frame


def _reads_as(frame: bytes, message: Any) -> bool:
    try:
        return bool(deserialize_message(frame, type(message)) == message)
    except Exception:  # RMWError; rclpy does not export it everywhere
        return False
