"""What can be wrong with cameras: frames lost or late, coarse JPEG, other light, a camera knocked askew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flashrt_ros.errors import ConfigError


@dataclass(frozen=True)
class CameraFault:
    """Of all cameras of the robot; the defaults are a good camera.

    drop: share of frames lost. delay_s: from exposure to reception. quality: of the JPEG, 1 to 100.
    brightness: factor on the pixels. tilt_deg: by so much each camera has been turned upwards.
    """

    drop: float = 0.0
    delay_s: float = 0.0
    quality: int = 90
    brightness: float = 1.0
    tilt_deg: float = 0.0

    @property
    def name(self) -> str:
        """'' for a good camera."""
        good = CameraFault()
        changed = {key: value for key, value in vars(self).items() if value != getattr(good, key)}
        words = {'delay_s': lambda s: f'delay={s * 1e3:g}', 'tilt_deg': lambda d: f'tilt={d:g}'}
        return ','.join(
            words.get(key, lambda v, key=key: f'{key}={v:g}')(value) for key, value in changed.items()
        )

    def lit(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [height, width, 3] under this light."""
        if self.brightness == 1.0:
            return picture
        return np.clip(picture * self.brightness, 0, 255).astype(np.uint8)


GOOD = CameraFault()
KINDS = {
    'drop': ('drop', 1.0, 0.0, 1.0),
    'delay': ('delay_s', 1e-3, 0.0, 10_000.0),
    'quality': ('quality', 1.0, 1.0, 100.0),
    'brightness': ('brightness', 1.0, 0.0, 10.0),
    'tilt': ('tilt_deg', 1.0, -45.0, 45.0),
}
"""Word -> field, unit, least and greatest value in that unit."""


def parse_fault(text: str) -> CameraFault:
    """'drop=0.3' or 'brightness=0.5+tilt=10'; 'none' for a good camera. Raises ConfigError."""
    fault = GOOD
    for word in [] if text == 'none' else text.split('+'):
        kind, _, number = word.partition('=')
        try:
            field, unit, least, most = KINDS[kind]
            value = float(number)
            if not least <= value <= most:
                raise ValueError
        except (KeyError, ValueError):
            known = ', '.join(f'{kind}={low:g}..{high:g}' for kind, (_, _, low, high) in KINDS.items())
            raise ConfigError(f"'{word}' is no camera fault", '--fault', f'take none, {known}') from None
        changed: dict[str, Any] = {field: int(value) if field == 'quality' else value * unit}
        fault = replace(fault, **changed)
    return fault
