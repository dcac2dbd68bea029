"""Measure the activation scales that precision 'fp8' needs, and store them beside a checkpoint.

usage: python -m flashrt_ros.engine.calibration.measure CHECKPOINT OBSERVATIONS.npz
       python -m flashrt_ros.engine.calibration.measure CHECKPOINT --random 8      (for random weights only)

OBSERVATIONS.npz holds `state` float32 [N, state_dim], `prompt` strings [N], and one array `images.VIEW` uint8
[N, height, width, 3] for each view. Eight to sixty-four observations from the robot's own task do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from flashrt_ros.engine.calibration.ranges import Ranges
from flashrt_ros.engine.calibration.scales import Prepared, Scales, observe, store
from flashrt_ros.engine.cuda.device import find_gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.engine import Engine
from flashrt_ros.engine.weights.store import OnDevice, fingerprint, pack
from flashrt_ros.errors import FlashRTError, ObservationError
from flashrt_ros.models.checkpoint import Checkpoint, open_checkpoint
from flashrt_ros.policy import Observation, PolicyOptions

IMAGES = 'images.'


def calibrate_checkpoint(
    path: Path, observations: Iterable[Observation], options: PolicyOptions | None = None
) -> Scales:
    """Run the observations through the engine in bf16 and write the scales beside the checkpoint."""
    observations = list(observations)
    ranges, key = measure_checkpoint(path, observations, options)
    scales = ranges.scales()
    store(path, key, scales, len(observations))
    return scales


def measure_checkpoint(
    path: Path, observations: Iterable[Observation], options: PolicyOptions | None = None
) -> tuple[Ranges, str]:
    """Ranges of what enters every product on these observations, and the fingerprint of the weights."""
    checkpoint, library = open_checkpoint(path, options), KernelLibrary(find_gpu())
    spec, device = checkpoint.spec, library.gpu.device
    packed = pack(OnDevice(checkpoint.tensors, device), spec, 'bf16')
    engine = Engine(library, spec, packed, len(checkpoint.processing.views))
    prepared = list(_prepare(checkpoint, observations))
    if not prepared:
        raise ObservationError('there are no observations', str(path), 'give at least one')
    return observe(engine, prepared), fingerprint(path / 'model.safetensors')


def read_observations(path: Path) -> list[Observation]:
    """Raises ObservationError for a file that does not hold what the module's docstring says."""
    fix = 'write it with numpy.savez: state, prompt, and images.VIEW for each view'
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise ObservationError(f'the file cannot be read: {error}', str(path), fix) from error
    missing = {'state', 'prompt'} - arrays.keys()
    views = {name[len(IMAGES) :]: array for name, array in arrays.items() if name.startswith(IMAGES)}
    lengths = {len(array) for array in arrays.values() if array.ndim}
    if missing or not views or len(lengths) != 1:
        raise ObservationError(f'it holds {sorted(arrays)} with lengths {sorted(lengths)}', str(path), fix)
    return [
        Observation({view: frames[i] for view, frames in views.items()}, state, str(arrays['prompt'][i]))
        for i, state in enumerate(arrays['state'])
    ]


def random_observations(checkpoint: Checkpoint, count: int, seed: int = 0) -> list[Observation]:
    """Noise images and normal states: right for random weights, wrong for trained ones."""
    rng, processing = np.random.default_rng(seed), checkpoint.processing
    width = processing.state_dim or processing.state.width
    return [
        Observation(
            {view: rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for view in processing.views},
            rng.standard_normal(width).astype(np.float32),
            'pick up the fork',
        )
        for _ in range(count)
    ]


def _prepare(checkpoint: Checkpoint, observations: Iterable[Observation]) -> Iterator[Prepared]:
    spec, generator = checkpoint.spec, torch.Generator().manual_seed(0)
    for observation in observations:
        prepared = checkpoint.processing.prepare(observation)
        noise = torch.randn(spec.horizon, spec.action_dim, generator=generator)
        yield prepared.images, prepared.tokens[0], prepared.state[0], noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('checkpoint', type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('observations', type=Path, nargs='?')
    source.add_argument('--random', type=int, metavar='N')
    arguments = parser.parse_args()
    try:
        if arguments.random:
            observations = random_observations(open_checkpoint(arguments.checkpoint), arguments.random)
        else:
            observations = read_observations(arguments.observations)
        scales = calibrate_checkpoint(arguments.checkpoint, observations)
    except FlashRTError as error:
        raise SystemExit(f'error: {error}') from error
    print(f'{len(scales)} scales from {len(observations)} observations stored in {arguments.checkpoint}')


if __name__ == '__main__':
    main()
