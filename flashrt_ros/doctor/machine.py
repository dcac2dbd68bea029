"""What the policy needs of this machine: GPU, driver, compiled kernels, packed weights, calibration."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from flashrt_ros.configuration import RobotConfig, check_against
from flashrt_ros.doctor.finding import Finding, Level, of_error
from flashrt_ros.errors import FlashRTError
from flashrt_ros.ingest.decoding import decoding_of
from flashrt_ros.loading import options_of
from flashrt_ros.models.backend import describe
from flashrt_ros.models.checkpoint import Checkpoint, open_checkpoint
from flashrt_ros.models.guidance import guidance_refusals


def checkpoint_findings(config: RobotConfig) -> Iterator[Finding]:
    """Whether the checkpoint can be read, and whether joints, views and rates of the robot fit it."""
    try:
        checkpoint = open_checkpoint(Path(config.policy.checkpoint), options_of(config))
        info = describe(
            checkpoint, 'cpu', 'fp32', guidance_refusals(checkpoint.spec, checkpoint.trained_prefix)
        )
        check_against(config, info)
    except FlashRTError as error:
        yield of_error('checkpoint', error)
        return
    width = (
        f'{info.state_dim} state and {info.action_dim} action columns for {len(config.joint_names)} joints'
    )
    yield Finding(
        Level.OK, 'checkpoint', f'{info.name}: {info.family}, views {", ".join(info.views)}, {width}'
    )
    if config.policy.device == 'cuda':
        yield from _engine_findings(config, checkpoint)


def gpu_findings(config: RobotConfig | None) -> Iterator[Finding]:
    """GPU, driver and memory. Without a GPU it matters only where the policy is to run on one."""
    wanted = config is not None and config.policy.device == 'cuda'
    if not torch.cuda.is_available() and not wanted:
        yield Finding(Level.NOTE, 'GPU', 'none that torch can use; the policy runs on the CPU')
        return
    from flashrt_ros.engine.cuda.device import find_gpu

    try:
        gpu = find_gpu()
    except FlashRTError as error:
        yield of_error('GPU', error)
        return
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info(gpu.index))
    capability = '.'.join(str(part) for part in gpu.capability)
    memory = f'{free:.1f} of {total:.1f} GiB free'
    driver = f'driver {_driver()}, torch {torch.__version__}, CUDA {torch.version.cuda}'
    yield Finding(Level.OK, 'GPU', f'{gpu.name}, compute capability {capability}, {memory}, {driver}')
    if not wanted:
        yield Finding(Level.WARN, 'policy.device', 'cpu, though there is a GPU', 'set policy.device: cuda')


def decoding_finding(config: RobotConfig) -> Finding:
    """What would make pixels of JPEGs."""
    try:
        decoding = decoding_of(config)
    except FlashRTError as error:
        return of_error('JPEGs', error)
    decoding.close()
    return Finding(Level.OK, 'JPEGs', decoding.text)


def _engine_findings(config: RobotConfig, checkpoint: Checkpoint) -> Iterator[Finding]:
    """What the first start would take minutes for, or refuse."""
    from flashrt_ros.engine.builds import policy_builds
    from flashrt_ros.engine.calibration.scales import stored
    from flashrt_ros.engine.cuda.compiler import cubin_path, find_nvcc
    from flashrt_ros.engine.cuda.device import find_gpu
    from flashrt_ros.engine.weights.formats import uneven_products
    from flashrt_ros.engine.weights.store import fingerprint, packed_path

    precision, views = options_of(config).precision, len(checkpoint.processing.views)
    uneven: frozenset[str] = frozenset()
    try:
        gpu, key = find_gpu(), fingerprint(checkpoint.path / 'model.safetensors')
        yield Finding(Level.OK, 'compiler', str(find_nvcc()))
        if precision == 'fp8':
            scales = stored(checkpoint.path, key)
            uneven = uneven_products(scales.crests)
            yield Finding(Level.OK, 'calibration', f'{len(scales)} scales')
        builds = {
            (file, tuple(sorted(constants.items())))
            for file, constants in policy_builds(gpu, checkpoint.spec, precision, views, uneven)
        }
        paths = [cubin_path(file, gpu.architecture, dict(constants)) for file, constants in builds]
        missing = sum(not path.exists() for path in paths)
        yield _cached('kernels', f'{len(paths)} for sm_{gpu.architecture}', missing, 'compiles them: minutes')
        packed = packed_path(key, checkpoint.spec, precision, views, gpu, uneven=uneven)
        yield _cached('packed weights', packed.name, int(not packed.exists()), 'packs them: a minute')
    except FlashRTError as error:
        yield of_error('engine', error)


def _cached(subject: str, what: str, missing: int, first_start: str) -> Finding:
    if not missing:
        return Finding(Level.OK, subject, f'{what}, in the cache')
    found = f'{what}, {missing} not in the cache'
    return Finding(
        Level.WARN, subject, found, f'start the policy node once before it matters; it {first_start}'
    )


def _driver() -> str:
    try:
        command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 'unknown'
    return found.strip().partition('\n')[0] or 'unknown'
