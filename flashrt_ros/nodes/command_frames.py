"""Commands as serialized messages: all but the numbers is the same in each, and is serialized once.

To build and to serialize a message takes longer than all that comes before it in a tick.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message

from flashrt_ros.control.motion import Command
from flashrt_ros.nodes.commands import MakeCommand

MakeFrame = Callable[[Command, int], bytes]
"""(command, now [ROS time, ns]) -> serialized message."""

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


def frame_maker(make: MakeCommand, joints: int) -> MakeFrame:
    """What serializes just as `serialize_message` would, which `make` fills a message for.

    Where the middleware serializes in a way that is not known here it does just that.
    """

    def slowly(command: Command, now_ns: int) -> bytes:
        return serialize_message(make(command, now_ns))

    moving, resting = (_form(make, joints, zero_velocity) for zero_velocity in (False, True))
    if moving is None or resting is None:
        return slowly

    def frame(command: Command, now_ns: int) -> bytes:
        return (resting if command.zero_velocity else moving).filled(command.positions, now_ns)

    return frame


def _form(make: MakeCommand, joints: int, zero_velocity: bool) -> _Form | None:
    """Found in one command, and tried with another. What pads a message is not always the same."""
    first, second = (
        Command(np.linspace(low, low + 1.0, joints), zero_velocity) for low in (0.123456, -2.654321)
    )
    then_ns, now_ns = 123_456_789_012, 1_700_000_000_987_654_321
    numbers, frame = first.positions.tobytes(), serialize_message(make(first, then_ns))
    at = frame.find(numbers)
    if at < 0:
        return None
    stamped = frame[_STAMP_AT : _STAMP_AT + _STAMP.size] == _STAMP.pack(*divmod(then_ns, _SECOND))
    form = _Form(frame[:at], frame[at + len(numbers) :], stamped)
    wanted = make(second, now_ns)
    agrees = deserialize_message(form.filled(second.positions, now_ns), type(wanted)) == wanted
    return form if agrees else None
