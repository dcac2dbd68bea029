"""The denoise loop of pi0 and pi0.5 on Hopper: all flow steps in one kernel.

    weights = pack_expert(spec, tensors, flow_table(tensors, spec), 'fp8')
    shape, guide = ExpertShape(horizon=50, prefix_capacity=712), GuideInputs(spec, device)
    loop = ExpertLoop(library, weights, scales, shape, prefix, guide)
    loop.actions.copy_(noise)
    loop.launch()                  # inside a graph capture; then loop.actions holds the actions

Its blocks stay on the GPU, fetch weights ahead and tell each other their results through L2
(kernels/expert_layers.cu). It is launched plainly, so that everything recorded before the loop has finished
when it starts: it reads the prefix, its length and all tables at once.
"""

from __future__ import annotations

from torch import Tensor

from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.buffers import ExpertBuffers, ExpertShape, Prefix, check_shape
from flashrt_ros.engine.expert.launches import ExpertLaunches
from flashrt_ros.engine.expert.weights import ExpertWeights
from flashrt_ros.engine.guidance import GuideInputs

__all__ = ['ExpertLoop', 'ExpertShape', 'Prefix']


class ExpertLoop:
    """All flow steps of one action expert. Owns its buffers; nothing is allocated after construction.

    actions: fp32 [horizon, 32], noise (t = 1) before `launch` and normalised actions (t = 0) after it.
    state_token: fp32 [1024], pi0's projected state, to be written before `launch`; None for pi0.5.
    guide: what the actions are guided by; off unless written to.
    exchange: what blocks tell each other, uint8; made ready by every `launch`, so that it starts afresh
        whatever an aborted one has left.
    stamps: int64 [16, 132], to be filled with the nanoseconds at which each block passes each point of the
        middle layer (benchmarks/expert_loop.py); the kernel is compiled for that.
    activation_scales: fp32 [L, 4], those of E4M3, as calibration finds them; None for bf16.
    Raises BackendError for a horizon or prefix that the kernels have no room for, and for missing scales.
    """

    def __init__(
        self,
        library: KernelLibrary,
        weights: ExpertWeights,
        activation_scales: Tensor | None,
        shape: ExpertShape,
        prefix: Prefix,
        guide: GuideInputs,
        stamps: Tensor | None = None,
    ) -> None:
        has_state = weights.heads.mixer is not None
        check_shape(shape, shape.horizon + has_state, prefix)
        buffers = ExpertBuffers(weights, activation_scales, shape, prefix.length.device)
        self.actions = buffers.actions
        self.state_token = buffers.base[0] if has_state else None
        self.exchange, self._initial = buffers.arena, buffers.initial
        self.guide = guide
        # Launches know their tensors by address only.
        self._kept = ExpertLaunches(library, weights, buffers, prefix, guide, stamps)
        self._launch = self._kept.all_steps()

    def launch(self) -> None:
        """Record all flow steps on the current stream."""
        self.exchange.copy_(self._initial)
        self._launch()
