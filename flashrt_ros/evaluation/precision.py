"""How far the chunks of one precision are from those of another, on the same observations and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.ingest import JointMap
from flashrt_ros.loading import options_of
from flashrt_ros.policy import Observation, load_policy

SEED = 20261124


@dataclass(frozen=True)
class Distance:
    """mae, p99, largest: by joint, then of all together, rad or m. cosine: of the whole chunks, the worst."""

    mae: list[float]
    p99: list[float]
    largest: list[float]
    cosine: float


def predict(
    config: RobotConfig,
    observations: Sequence[Observation],
    device: str,
    precision: str,
    progress: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """float64 [N, H, D], rad or m: the chunks of a policy. Raises as `load_policy`."""
    changed = config.model_copy(
        update={'policy': config.policy.model_copy(update={'device': device, 'precision': precision})}
    )
    joints = JointMap.of(config)
    policy = load_policy(Path(config.policy.checkpoint), options_of(changed))
    try:
        policy.reseed(SEED)
        chunks = []
        for number, observation in enumerate(observations):
            chunks.append(joints.to_ros(policy.infer(observation).actions))
            progress(number + 1)
        return np.array(chunks)
    finally:
        policy.close()


def distance(of: np.ndarray, to: np.ndarray) -> Distance:
    """of, to: [N, H, D]."""
    gap = np.abs(of - to)
    flat = [gap[..., column] for column in range(gap.shape[-1])] + [gap]
    a, b = of.reshape(len(of), -1), to.reshape(len(to), -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.divide((a * b).sum(axis=1), norms, out=np.ones(len(a)), where=norms > 0)
    return Distance(
        [float(values.mean()) for values in flat],
        [float(np.quantile(values, 0.99)) for values in flat],
        [float(values.max()) for values in flat],
        float(cosines.min()),
    )
