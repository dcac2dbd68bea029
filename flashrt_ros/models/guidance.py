"""Real-time chunking inside the flow: how a new chunk is made to go on from the one in execution.

Flow time t runs from 1 (noise) to 0 (actions); the paper's is tau = 1 - t. A step at t with velocity v
predicts the clean chunk A1 = A - t * v. Guidance pulls A1 towards the target Y, row i by W_i:

    g      = J^T [W * (Y - A1)],    J = dA1/dA            the vector-Jacobian product ('exact')
    g      = W * (Y - A1)                                 J taken as 1 ('identity')
    gamma  = min(clip, (1 - tau) / (tau * r2)),  r2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2)
    v'     = v - gamma * g

With 'prefix' nothing is pulled: before every step the first rows are set to the target and their flow time is
0 (clean), as a checkpoint trained for it expects.

Sources: arXiv 2506.07339 ('exact'); lerobot 0.6.1 `policies/rtc/modeling_rtc.py`, which evaluates v before it
asks for gradients and therefore computes 'identity'; arXiv 2512.05964 ('prefix').
A backend with static graphs takes the fields of `Guide` as run-time inputs; unguided, the weights are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashrt_ros.errors import ObservationError
from flashrt_ros.models.processing import Processing
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.policy import Guidance, PolicyInfo

Velocity = Callable[[Tensor], Tensor]
"""The flow field at one time: actions [1, H, A] -> velocity [1, H, A]."""


@dataclass(frozen=True)
class Guide:
    """Guidance in the network's units, padded to its shape.

    target: fp32 [1, H, A]; padded columns are 0, as in training. weights: fp32 [H, A]. rows: frozen ones.
    gammas: guidance weight of each flow step, [steps].
    """

    method: str
    target: Tensor
    weights: Tensor
    rows: int
    gammas: tuple[float, ...]

    def freeze(self, actions: Tensor) -> Tensor:
        """The actions with the frozen rows put in."""
        return torch.cat([self.target[:, : self.rows].to(actions.dtype), actions[:, self.rows :]], 1)


def guidance_weight(time: float, clip: float) -> float:
    """gamma at flow time `time` in 0 (excluded) to 1."""
    tau = 1.0 - time
    if tau <= 0.0:
        return clip
    return min(clip, (tau**2 + time**2) / (tau * time))


def guided_velocity(velocity: Velocity, actions: Tensor, time: float, gamma: float, guide: Guide) -> Tensor:
    """v' of one flow step, without a graph behind it. `velocity` must be differentiable for 'exact'."""
    if guide.method == 'identity':
        flow = velocity(actions)
        return flow - gamma * guide.weights * (guide.target - (actions - time * flow))
    with torch.enable_grad():
        start = actions.detach().requires_grad_()
        flow = velocity(start)
        clean = start - time * flow
        pull = guide.weights * (guide.target - clean.detach())
        (correction,) = torch.autograd.grad(clean, start, pull)
    return flow.detach() - gamma * correction


def make_guide(
    guidance: Guidance, processing: Processing, info: PolicyInfo, state: np.ndarray, steps: int
) -> Guide:
    """Guidance -> the network's units. state: of the observation, float [state_dim].

    Raises ObservationError for guidance that this policy cannot follow.
    """
    check_guidance(guidance, info)
    rows, width = guidance.actions.shape
    constant = processing.constant_columns(width)
    encoded = torch.from_numpy(processing.encode(guidance.actions, state))
    target = torch.zeros(1, info.horizon, processing.padded_dim)
    target[0, :rows] = encoded
    weights = torch.zeros(info.horizon, processing.padded_dim)
    if guidance.weights is not None:
        weights[:rows] = torch.from_numpy(guidance.weights.astype(np.float32))[:, None]
    weights[:, :width][:, torch.from_numpy(constant)] = 0.0
    gammas = tuple(guidance_weight(1 - step / steps, guidance.clip) for step in range(steps))
    return Guide(guidance.method, target, weights, rows if guidance.method == 'prefix' else 0, gammas)


def check_guidance(guidance: Guidance, info: PolicyInfo) -> None:
    """Raises ObservationError for a method this policy refuses, or arrays of the wrong shape or content."""
    where = f'guidance for {info.name}'
    refusal = info.guidance_refusals.get(guidance.method, f"there is no method '{guidance.method}'")
    if refusal:
        raise ObservationError(refusal, where, 'choose another executor.strategy')
    actions, weights = guidance.actions, guidance.weights
    if actions.ndim != 2 or not 1 <= len(actions) <= info.horizon:
        raise ObservationError(
            f'the actions are {list(actions.shape)}', where, f'give 1 to {info.horizon} rows of them'
        )
    if info.action_dim and actions.shape[1] != info.action_dim:
        raise ObservationError(
            f'{actions.shape[1]} action columns', where, f'give the {info.action_dim} of the robot'
        )
    if not np.isfinite(actions).all():
        raise ObservationError('an action is not finite', where, 'do not guide by a chunk that has failed')
    if guidance.method == 'prefix':
        if len(actions) > info.trained_prefix:
            raise ObservationError(
                f'{len(actions)} rows are frozen, but the checkpoint was trained with {info.trained_prefix}',
                where,
                'make inference faster or action_rate_hz lower',
            )
        return
    if weights is None or weights.shape != (len(actions),):
        raise ObservationError('there is not one weight for each row', where, 'give weights [rows]')
    if not ((weights >= 0) & (weights <= 1)).all() or not guidance.clip >= 0:
        raise ObservationError('a weight is not in 0 to 1, or clip is negative', where, 'correct it')


def guidance_refusals(spec: PolicySpec, trained_prefix: int) -> dict[str, str]:
    """Guidance method -> why the plain model of such a checkpoint cannot do it, '' where it can."""
    prefix = ''
    if not spec.has_ada_rms:
        prefix = 'a frozen prefix needs a flow time for each action, which only pi0.5 has'
    elif trained_prefix == 0:
        prefix = (
            'the checkpoint was not trained with a frozen prefix (its config.json has no '
            'rtc_training_max_delay, and policy.trained_prefix is not set)'
        )
    return {'prefix': prefix, 'identity': '', 'exact': ''}
