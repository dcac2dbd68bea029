"""Where the files lie that are not Python: CUDA sources (`kernels`) and example configurations (`config`).

An installation by pip or colcon carries them inside the package; in a working tree they are beside it.
"""

from pathlib import Path

from flashrt_ros.errors import FlashRTError

_PACKAGE = Path(__file__).parent


def resource_folder(name: str) -> Path:
    """Folder `name` ('kernels' or 'config') of this installation or working tree, or FlashRTError."""
    candidates = (_PACKAGE / name, _PACKAGE.parent / name)
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FlashRTError(
        what=f'this installation of flashrt_ros lacks its folder {name!r}',
        where=' and '.join(str(folder) for folder in candidates),
        fix='install the package again (make build, colcon build or pip install)',
    )
