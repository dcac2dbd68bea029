"""Everything that can go wrong because of what a user gave us, as typed exceptions.

Each class takes the facts and writes the sentence itself: what is wrong, where, and how to fix it.
Raise with values, never with prose, so that the wording stays uniform and tests can match it.
A room adds its own subclasses next to the code that raises them.
"""


class FlashRTError(Exception):
    """Base of every error that a user can cause; its text always names a remedy."""

    def __init__(self, what: str, where: str, fix: str) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(f'{where}: {what}. {fix[:1].upper()}{fix[1:]}.')


class ConfigError(FlashRTError):
    """The robot's YAML, a ROS parameter or a command-line option is wrong."""


class CheckpointError(FlashRTError):
    """A checkpoint directory, or a file in it, cannot be used."""


class ObservationError(FlashRTError):
    """An image, joint state or prompt cannot be given to the policy; the next one may be fine."""


class BackendError(FlashRTError):
    """The device, driver, architecture or memory does not suffice for the chosen backend."""
