"""The configuration as ROS parameters: declared from the schema, validated as a whole, applied if dynamic."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from flashrt_ros.configuration import Leaf, RobotConfig, leaves, load_config, with_values
from flashrt_ros.configuration.fields import suggestion
from flashrt_ros.errors import ConfigError

_SOURCE = 'parameter'

KINDS = {
    float: "a number with a decimal point, such as '5.0'",
    int: 'an integer',
    str: 'a text',
    bool: 'true or false',
}
"""What to write for a parameter of a type."""

_PATH = Leaf(
    key='config',
    type=str,
    value='',
    optional=False,
    description="Path of the robot's YAML file",
    unit='',
    minimum=None,
    maximum=None,
    choices=(),
    dynamic=False,
)


class ConfigParameters:
    """Declares `config` (the YAML's path) and one parameter for each leaf of the given sections.

    sections: top-level keys. on_change: gets the whole configuration after dynamic parameters were set.
    Raises ConfigError if the file or an overriding value is wrong.
    """

    def __init__(self, node: Node, sections: Sequence[str], on_change: Callable[[RobotConfig], None]) -> None:
        config = _load(node)
        values = {leaf.key: _declare(node, leaf) for leaf in leaves(config) if leaf.section in sections}
        self.config = with_values(config, values, _SOURCE)
        self._keys = set(values)
        self._on_change = on_change
        node.add_on_set_parameters_callback(self._validate)
        node.add_post_set_parameters_callback(self._apply)

    def _validate(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        try:
            self._with(parameters)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply(self, parameters: list[Parameter[Any]]) -> None:
        config = self._with(parameters)
        if config != self.config:
            self.config = config
            self._on_change(config)

    def _with(self, parameters: list[Parameter[Any]]) -> RobotConfig:
        ours = {
            parameter.name: _plain(parameter.value)
            for parameter in parameters
            if parameter.name in self._keys
        }
        return with_values(self.config, ours, _SOURCE) if ours else self.config


def _load(node: Node) -> RobotConfig:
    """The configuration of the file that the parameter `config` names."""
    path = _declare(node, _PATH)
    if not path:
        fix = 'start the node with --ros-args -p config:=/path/to/robot.yaml'
        raise ConfigError('no configuration file is given', f'{_SOURCE}: config', fix)
    config = load_config(path)
    _refuse_unknown_overrides(node, config)
    return config


def _refuse_unknown_overrides(node: Node, config: RobotConfig) -> None:
    """ROS ignores an override of a parameter that nobody declares; in our sections that is a mistake."""
    sections = type(config).model_fields
    known = [leaf.key for leaf in leaves(config)]
    for name in node._parameter_overrides:
        if name.split('.')[0] in sections and name not in known:
            what = f'there is no such parameter; {suggestion(name, known)}'
            raise ConfigError(what, f'{_SOURCE}: {name}', 'correct or remove it')


def _declare(node: Node, leaf: Leaf) -> Any:
    """Declare one leaf and return its value: the YAML's, or the one that overrides it."""
    try:
        return _plain(declare(node, leaf.key, leaf.value, leaf.type, _descriptor(leaf)))
    except InvalidParameterValueException as error:
        raise ConfigError(str(error), f'{_SOURCE}: {leaf.key}', f'give a value {_range(leaf)}') from None


def declare(
    node: Node, name: str, default: Any, kind: type, descriptor: ParameterDescriptor | None = None
) -> Any:
    """Declare a parameter and return its value. Raises ConfigError for one that is no `kind`."""
    try:
        return node.declare_parameter(name, default, descriptor).value
    except InvalidParameterTypeException as error:
        raise ConfigError(
            str(error), f'{_SOURCE}: {name}', f'give {KINDS.get(kind, "a list of texts")}'
        ) from None


def _plain(value: Any) -> Any:
    """rclpy gives lists of numbers as arrays."""
    return list(value) if isinstance(value, array) else value


def _descriptor(leaf: Leaf) -> ParameterDescriptor:
    unit = f' [{leaf.unit}]' if leaf.unit else ''
    descriptor = ParameterDescriptor(description=leaf.description + unit, read_only=not leaf.dynamic)
    # What may be unset, or is an empty list, has no type that rclpy could hold it to; the schema does.
    descriptor.dynamic_typing = leaf.optional or leaf.type is list
    if leaf.choices:
        descriptor.additional_constraints = f'one of: {", ".join(leaf.choices)}'
    if leaf.minimum is not None and leaf.maximum is not None:
        if leaf.type is int:
            descriptor.integer_range = [
                IntegerRange(from_value=int(leaf.minimum), to_value=int(leaf.maximum), step=1)
            ]
        else:
            low, high = float(leaf.minimum), float(leaf.maximum)
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return descriptor


def _range(leaf: Leaf) -> str:
    return (
        f'from {leaf.minimum:g} to {leaf.maximum:g}' if leaf.minimum is not None else 'that the schema allows'
    )
