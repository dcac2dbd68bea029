"""A policy whose flow is known in closed form: chunks drawn from a Gaussian process around a path.

The data are chunks r + e: r the path from the start of the chunk on, e smooth deviations, Gaussian over the
rows with covariance S = s^2 exp(-(i - j)^2 / (2 l^2)), the same for every joint. So two chunks of the same
moment differ as those of a learned policy with several ways to do the task. At flow time t the noisy chunk is
t * noise + (1 - t) * data, the expected clean chunk

    E[data | A] = r + (1 - t) S ((1 - t)^2 S + t^2 I)^-1 (A - (1 - t) r)

and the velocity (A - E) / t. The Jacobian of that is no multiple of the identity, so that exact and identity
guidance differ. A frozen prefix conditions the Gaussian on its rows, as an ideal training for it would.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from flashrt_ros.models.guidance import Guide, guidance_weight, guided_velocity
from flashrt_ros.policy import Guidance, Observation, PolicyInfo, Prediction

HORIZON, STEP_S, FLOW_STEPS = 50, 1.0 / 30.0, 10
DEVIATION, LENGTH = 0.04, 12.0
"""s in rad, l in rows: chunks of one moment differ by hundredths of a radian, over a third of a second."""

SCALE = 0.35
"""rad of one unit of the flow: joints on the path have about this deviation, as normalised actions have 1."""

Path = Callable[[np.ndarray], np.ndarray]
"""Times [N] in seconds -> positions [N, D] in rad."""


class SyntheticPolicy:
    """Implements `flashrt_ros.policy.Policy`. start_s: when row 0 of the next chunk is due, set before it."""

    def __init__(self, path: Path, joints: int, seed: int) -> None:
        self.info = PolicyInfo(
            name='synthetic',
            family='gaussian',
            views=(),
            state_dim=joints,
            action_dim=joints,
            horizon=HORIZON,
            steps=FLOW_STEPS,
            device='cpu',
            precision='fp64',
            parameters=0,
            trained_prefix=HORIZON - 1,
            guidance_refusals=dict.fromkeys(('prefix', 'identity', 'exact'), ''),
        )
        self.start_s = 0.0
        self._path = path
        self._generator = torch.Generator().manual_seed(seed)
        rows = torch.arange(HORIZON, dtype=torch.float64)
        covariance = (DEVIATION / SCALE) ** 2 * torch.exp(-((rows[:, None] - rows) ** 2) / (2 * LENGTH**2))
        self._covariance = covariance + 1e-8 * torch.eye(HORIZON, dtype=torch.float64)

    def infer(
        self,
        observation: Observation,
        noise: np.ndarray | None = None,
        guidance: Guidance | None = None,
    ) -> Prediction:
        times = self.start_s + STEP_S * np.arange(HORIZON)
        mean, covariance = torch.from_numpy(self._path(times)) / SCALE, self._covariance
        rows = 0
        if guidance is not None and guidance.method == 'prefix':
            rows = len(guidance.actions)
            mean, covariance = self._given(mean, torch.from_numpy(guidance.actions).double() / SCALE)
        actions = torch.randn(1, *mean.shape, generator=self._generator, dtype=torch.float64)
        guide = None if guidance is None or rows else _guide(guidance, mean.shape)
        for step in range(FLOW_STEPS):
            time = 1 - step / FLOW_STEPS
            field = _Field(mean, covariance, time)
            if guide is None:
                velocity = field(actions)
            else:
                velocity = guided_velocity(field, actions, time, guide.gammas[step], guide)
            actions = actions - velocity / FLOW_STEPS
        return Prediction((actions[0] * SCALE).numpy().astype(np.float32), {})

    def shrink(self, observation: Observation) -> Observation:
        return observation

    def reseed(self, seed: int | None) -> None:
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def close(self) -> None:
        pass

    def _given(self, mean: torch.Tensor, prefix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of the rows, when the first are known; those have no variance left."""
        rows, full = len(prefix), self._covariance
        gain = torch.linalg.solve(full[:rows, :rows], full[:rows, rows:]).T
        after = mean[rows:] + gain @ (prefix - mean[:rows])
        covariance = torch.zeros_like(full)
        covariance[rows:, rows:] = full[rows:, rows:] - gain @ full[:rows, rows:]
        return torch.cat([prefix, after]), covariance


class _Field:
    """The velocity at one flow time."""

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor, time: float) -> None:
        self._mean, self._time = mean, time
        noisy = (1 - time) ** 2 * covariance + time**2 * torch.eye(HORIZON, dtype=torch.float64)
        self._gain = (1 - time) * torch.linalg.solve(noisy, covariance).T

    def __call__(self, actions: torch.Tensor) -> torch.Tensor:
        clean = self._mean + self._gain @ (actions - (1 - self._time) * self._mean)
        return (actions - clean) / self._time


def _guide(guidance: Guidance, shape: torch.Size) -> Guide:
    rows = len(guidance.actions)
    target, weights = torch.zeros(1, *shape, dtype=torch.float64), torch.zeros(*shape, dtype=torch.float64)
    target[0, :rows] = torch.from_numpy(guidance.actions).double() / SCALE
    if guidance.weights is not None:
        weights[:rows] = torch.from_numpy(guidance.weights).double()[:, None]
    gammas = tuple(guidance_weight(1 - step / FLOW_STEPS, guidance.clip) for step in range(FLOW_STEPS))
    return Guide(guidance.method, target, weights, 0, gammas)
