"""Guidance as inputs of a captured graph: buffers that its kernels read at every replay.

They hold the fields of `models.guidance.Guide`. Without guidance the weights are 0 and no row is frozen,
which leaves every action as it is, to the last bit; so nothing is captured twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashrt_ros.models.guidance import Guide
from flashrt_ros.models.spec import PolicySpec


class GuideInputs:
    """target, weights: fp32 [H, A]. gammas: fp32 [steps]. frozen: int32 [1], rows that are the target's.

    They are parts of one buffer, so that one copy writes them all. off: whether they guide nothing.
    """

    def __init__(self, spec: PolicySpec, device: torch.device) -> None:
        size = spec.horizon * spec.action_dim
        self._device = torch.zeros(2 * size + spec.steps + 1, device=device)
        self._host = torch.zeros(self._device.shape, pin_memory=device.type == 'cuda')
        self._sizes, self._shape = [size, size, spec.steps, 1], (spec.horizon, spec.action_dim)
        self.target, self.weights, self.gammas, self.frozen = self._parts(self._device)
        self.off = True

    def write(self, guide: Guide | None) -> None:
        """Stage what the next replay is guided by, on the current stream; None for nothing.

        What was written before must have left the host.
        """
        if guide is None:
            if not self.off:
                self._device.zero_()
            self.off = True
            return
        target, weights, gammas, frozen = self._parts(self._host)
        target.copy_(guide.target[0])
        weights.copy_(guide.weights)
        gammas.copy_(torch.tensor(guide.gammas))
        frozen.fill_(guide.rows)
        self._device.copy_(self._host, non_blocking=True)
        self.off = False

    def _parts(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        target, weights, gammas, frozen = flat.split(self._sizes)
        return target.view(self._shape), weights.view(self._shape), gammas, frozen.view(torch.int32)
