"""The simulated robot's parameters, typed and checked once, when the node is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from flashrt_ros.errors import ConfigError
from flashrt_ros.nodes.parameters import declare
from flashrt_ros.simulation.robots import ROBOTS

RANGES = {
    'seed': (0, 2**31),
    'speed': (0.0, 100.0),
    'width': (16, 1920),
    'height': (16, 1080),
    'camera_hz': (0.1, 500.0),
    'joint_states_hz': (1.0, 500.0),
    'limit_s': (0.1, 3600.0),
    'silence_s': (0.01, 60.0),
}


@dataclass(frozen=True)
class SimParameters:
    """robot: one of `ROBOTS`. seed: of the first layout; each reset takes the next.

    speed: times real time; 0: as fast as it goes. publish_clock: simulated time on /clock, for nodes with
    use_sim_time; false: the system's time, and then speed is 1. width, height: pixels of every camera.
    limit_s: longest time for the task. silence_s: without a command for so long, silence is reported.
    command_topic: empty for /ROBOT/joint_commands.
    """

    robot: str = 'so101'
    seed: int = 0
    speed: float = 1.0
    publish_clock: bool = True
    width: int = 320
    height: int = 240
    camera_hz: float = 30.0
    joint_states_hz: float = 100.0
    limit_s: float = 30.0
    silence_s: float = 0.5
    command_topic: str = ''
    array_topic: str = '/forward_position_controller/commands'

    @classmethod
    def declared(cls, node: Node) -> SimParameters:
        """Declare them all and read them. Raises ConfigError for a value that is none."""
        values = {field.name: _value(node, field.name, field.default) for field in fields(cls)}
        if values['robot'] not in ROBOTS:
            raise ConfigError(
                f"'{values['robot']}' is not known", 'robot', f'take one of {", ".join(ROBOTS)}'
            )
        for name, (low, high) in RANGES.items():
            if not low <= values[name] <= high:
                raise ConfigError(f'{values[name]} is out of range', name, f'choose {low:g} to {high:g}')
        if not values['publish_clock'] and values['speed'] != 1.0:
            raise ConfigError(
                f'{values["speed"]:g} times real time, on the system clock',
                'speed',
                'set publish_clock, or speed to 1',
            )
        values['command_topic'] = values['command_topic'] or f'/{values["robot"]}/joint_commands'
        return cls(**values)


def _value(node: Node, name: str, default: Any) -> Any:
    """Of the type of `default`; where that is a number with a point, one without will do."""
    kind = type(default)
    if kind is not float:
        return declare(node, name, default, kind)
    value = declare(node, name, default, kind, ParameterDescriptor(dynamic_typing=True))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f'{value!r} is no number', name, "give one, such as '0.5'")
    return float(value)
