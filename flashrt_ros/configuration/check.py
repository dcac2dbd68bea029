"""Does this robot fit this checkpoint? Asked once, after loading, before anything moves."""

from __future__ import annotations

from flashrt_ros.configuration.fields import suggestion
from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.errors import ConfigError
from flashrt_ros.policy import PolicyInfo


def check_against(config: RobotConfig, info: PolicyInfo) -> None:
    """Raise ConfigError if views, widths or rates of the robot do not fit the loaded policy."""
    _check_views(config, info)
    _check_width(config, info, 'action', info.action_dim)
    _check_width(config, info, 'state', info.state_dim)
    _check_chunk_lasts(config, info)


def _check_views(config: RobotConfig, info: PolicyInfo) -> None:
    masked = config.policy.masked_views
    for key, views in (('cameras', config.cameras), ('policy.masked_views', masked)):
        for view in views:
            if view not in info.views:
                raise ConfigError(
                    f"the checkpoint '{info.name}' has no view '{view}'; {suggestion(view, info.views)}",
                    f'{key}.{view}' if key == 'cameras' else key,
                    'name the views as the checkpoint does',
                )
    for view in info.views:
        if view in masked and view in config.cameras:
            raise ConfigError(
                f"the view '{view}' has a camera", 'policy.masked_views', 'remove it from one of the two'
            )
        if view not in masked and view not in config.cameras:
            raise ConfigError(
                f"the checkpoint '{info.name}' has a view '{view}' without a camera",
                'cameras',
                f"add 'cameras.{view}', or list it in policy.masked_views if the robot has none",
            )


def _check_width(config: RobotConfig, info: PolicyInfo, what: str, width: int) -> None:
    joints = len(config.robot.joints)
    if width == 0:
        raise ConfigError(
            f"the checkpoint '{info.name}' does not say how wide its {what} is",
            f'policy.{what}_dim',
            f'set it to the width it was trained with ({joints} if that is what robot.joints lists)',
        )
    if joints != width:
        raise ConfigError(
            f"{joints} joints are listed, but the checkpoint '{info.name}' has {width} {what} columns",
            'robot.joints',
            "list exactly the checkpoint's joints, in its order",
        )


def _check_chunk_lasts(config: RobotConfig, info: PolicyInfo) -> None:
    length, period = info.horizon / config.rates.action_rate_hz, 1.0 / config.rates.chunk_rate_hz
    if length <= period:
        raise ConfigError(
            f'a chunk of {info.horizon} rows at {config.rates.action_rate_hz:g} Hz lasts {length:.3g} s, '
            f'but the next comes only after {period:.3g} s',
            'rates.chunk_rate_hz',
            f'raise it above {1.0 / length:.3g} Hz',
        )
