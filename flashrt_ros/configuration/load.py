"""Reads the robot's YAML into a RobotConfig, or says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flashrt_ros.configuration.problems import config_error
from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.errors import ConfigError


def load_config(path: Path | str) -> RobotConfig:
    """Read and validate one file. Relative paths in it are resolved against its folder.

    Raises ConfigError naming the file, the dotted key and the fix.
    """
    path = Path(path)
    return parse_config(_mapping(path), source=str(path), folder=path.parent)


def parse_config(data: Mapping[str, Any], source: str, folder: Path) -> RobotConfig:
    """Validate what a YAML file holds. source: named in errors. folder: where relative paths start."""
    try:
        return RobotConfig.model_validate(data, context={'folder': folder})
    except ValidationError as error:
        raise config_error(error, source, RobotConfig) from None


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding='utf-8'), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise ConfigError(
            'the file does not exist', str(path), 'check the path of the configuration'
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'the file cannot be read ({error})', str(path), 'give a readable YAML file'
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        summary = ' '.join(str(error).split())
        raise ConfigError(f'this is not valid YAML ({summary})', str(path), 'correct the syntax') from None
    if not isinstance(data, Mapping):
        raise ConfigError('the file holds no mapping of sections', str(path), 'start from config/so101.yaml')
    return data


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML libraries silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, 'a key is not a plain word', key_node.start_mark
                )
            if key_node.value in seen:
                problem = f"the key '{key_node.value}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
