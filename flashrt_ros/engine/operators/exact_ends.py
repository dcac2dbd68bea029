"""The ends of a flow step with exact guidance, as two launches; contracts are in kernels/exact_ends.cu."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators.forward import Modulation


def refusal(width: int, actions: int) -> str:
    """Why there is no kernel for a residual stream and actions of these widths; '' where there is."""
    if width > 1024 or width % 128:
        return f'the ends of a flow step take widths of 128, 256, ..., 1024, not of {width}'
    if actions > 32 or actions % 8:
        return f'the ends of a flow step take 8, 16, 24 or 32 actions, not {actions}'
    return ''


def ends_build(width: int, actions: int) -> tuple[str, dict[str, int]]:
    """Kernel file and constants."""
    return 'exact_ends', {'WIDTH': width, 'ACTIONS': actions}


@dataclass(frozen=True)
class ExactEnds:
    """Of one chunk: actions and velocity fp32 [H, A], which the kernels read and write.

    gradient: of the residual stream, fp32 [H, width], written by `begin`, read by `end`.
    """

    library: KernelLibrary
    actions: Tensor
    velocity: Tensor
    guide: GuideInputs
    gradient: Tensor

    def begin(
        self,
        step: int,
        x: Tensor,
        modulation: Modulation | None,
        gate: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        out: Tensor,
    ) -> None:
        """x fp32 [H, width], behind the last layer -> velocity, gradient, and out bf16 [H, width].

        gate: of the product that takes out. weight, bias: of the velocity, fp32 [A, width] and [A].
        """
        scale, shift = (None, None) if modulation is None else (modulation.scale, modulation.shift)
        guide, given = self.guide, (x, scale, shift, gate, weight, bias)
        pulled = self.actions, guide.target, guide.weights, self._time(step)
        self._launch('exact_begin', *given, *pulled, self.velocity, self.gradient, out)

    def end(self, step: int, x: Tensor, upstream: Tensor, scale: Tensor | None, weight: Tensor) -> None:
        """Back through the first norm and the embedding, then the guided step of the actions.

        x: what the norm has normalised. upstream: bf16 [parts, H, width]. weight: of the embedding,
        transposed, fp32 [A, width].
        """
        guide = self.guide
        arriving = x, upstream, upstream.shape[0], upstream.stride(0), scale, self.gradient
        gamma, time = guide.gammas[step:], self._time(step)
        pulled = self.velocity, guide.target, guide.weights, gamma, time, 1 / len(guide.gammas)
        self._launch('exact_end', *arriving, weight, *pulled, self.actions)

    def _time(self, step: int) -> float:
        return 1 - step / len(self.guide.gammas)

    def _launch(self, name: str, *arguments: Tensor | int | float | None) -> None:
        file, constants = ends_build(self.gradient.shape[1], self.actions.shape[1])
        kernel, rows = self.library.kernel(file, name, **constants), len(self.actions)
        kernel(rows, 256, *arguments, dependent=True)
