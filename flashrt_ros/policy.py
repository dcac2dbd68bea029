"""The one interface between a policy and whoever runs it: node, bag evaluator, benchmark.

A `Policy` turns an `Observation` into a `Prediction`. The CPU backend (`models.backend`) and the CUDA
engine (`engine.backend`) both implement it; `load_policy` chooses. Nothing here knows about ROS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from flashrt_ros.errors import BackendError
from flashrt_ros.pictures import CameraImage

STAGES = ('preprocess', 'vision', 'prefill', 'denoise', 'postprocess')
"""Stages that every backend times, in order. Together they are the whole of `Policy.infer`."""


@dataclass(frozen=True)
class Observation:
    """What the robot saw and felt at one moment.

    images: view name -> uint8 [height, width, 3], RGB, upright, any size; or a frame that is still to be
    decoded. A view may be absent (masked out).
    state: float32 [state_dim], in the units the checkpoint was trained in, ordered as its state is.
    prompt: the task in plain words.
    """

    images: Mapping[str, np.ndarray | CameraImage]
    state: np.ndarray
    prompt: str


@dataclass(frozen=True)
class Prediction:
    """What the policy wants to do: a chunk of actions and where the time went.

    actions: float32 [horizon, action_dim], unnormalised, absolute where the checkpoint's processing says so.
    timings: stage name (see `STAGES`) -> seconds.
    """

    actions: np.ndarray
    timings: Mapping[str, float] = field(default_factory=dict)


GUIDANCE = ('prefix', 'identity', 'exact')
"""Methods by which a new chunk can be made to agree with the one in execution; see `Guidance`."""


@dataclass(frozen=True)
class Guidance:
    """What the robot does while the policy thinks, and after, so that the new chunk can go on from there.

    method: 'prefix' freezes the first rows to `actions` (training-time real-time chunking, arXiv 2512.05964).
    'exact' and 'identity' pull the predicted chunk towards `actions` at every flow step (real-time chunking,
    arXiv 2506.07339): 'exact' with the published vector-Jacobian product, 'identity' with the Jacobian
    taken as 1.
    actions: float32 [R, action_dim], 1 <= R <= horizon, in the units of `Prediction.actions`; row i belongs
    to row i of the new chunk. All of them are frozen by 'prefix'.
    weights: float32 [R] in 0 to 1, the pull on each row; None for 'prefix'.
    clip: largest guidance weight (beta of the paper).
    """

    method: str
    actions: np.ndarray
    weights: np.ndarray | None = None
    clip: float = 5.0


NO_GUIDANCE = dict.fromkeys(GUIDANCE, 'this backend does not take guidance')


@dataclass(frozen=True)
class PolicyInfo:
    """What a loaded policy expects and gives; enough to check a robot's configuration against it.

    views: image names in the checkpoint's order. state_dim, action_dim: the robot's widths, without padding
    (0 where the checkpoint does not say). horizon: rows of a chunk.
    trained_prefix: most rows that may be frozen by the method 'prefix'; 0 for a checkpoint not trained so.
    guidance_refusals: guidance method -> why this policy cannot do it; '' where it can.
    """

    name: str
    family: str
    views: tuple[str, ...]
    state_dim: int
    action_dim: int
    horizon: int
    steps: int
    device: str
    precision: str
    parameters: int
    trained_prefix: int = 0
    guidance_refusals: Mapping[str, str] = field(default_factory=lambda: dict(NO_GUIDANCE))


class Policy(Protocol):
    """A loaded, warmed-up policy. Not thread-safe: one caller at a time."""

    info: PolicyInfo

    def infer(
        self,
        observation: Observation,
        noise: np.ndarray | None = None,
        guidance: Guidance | None = None,
    ) -> Prediction:
        """Run the whole policy once.

        noise: float32 [horizon, padded action width], the flow's starting point; drawn from N(0, 1) if None.
        guidance: what the chunk should go on from, by a method that `info.guidance_refusals` does not refuse.
        Raises ObservationError for an observation that the checkpoint cannot take (view, shape, NaN), and for
        guidance that is misshaped, not finite or refused.
        """
        ...

    def shrink(self, observation: Observation) -> Observation:
        """What can be done to an observation beforehand, in any thread, such as resizing its pictures:
        `infer` gives the same for it, and sooner. Raises ObservationError as `infer`."""
        ...

    def reseed(self, seed: int | None) -> None:
        """Begin the sequence of starting noises anew; None draws the seed from the system."""
        ...

    def close(self) -> None:
        """Give back the memory; the object is of no use afterwards."""
        ...


@runtime_checkable
class Pipelined(Policy, Protocol):
    """A policy that can be given the next observation while it works on one."""

    def submit(self, observation: Observation) -> Callable[[], Prediction]:
        """Begin `infer`, and return what waits for its prediction.

        Two may be on their way at a time; call what was returned in the same order. A prediction that others
        overlapped has `timings` of its own: 'graph' in place of the stages that a GPU goes through. Raises,
        here or when called, as `infer`.
        """
        ...


@runtime_checkable
class SeesAhead(Policy, Protocol):
    """A policy that can begin with the pictures while the rest of an observation is still made."""

    def see_ahead(self, images: Mapping[str, np.ndarray | CameraImage]) -> None:
        """Begin what `infer` does with these images alone, and return at once.

        The next `infer` goes on from there if its observation has the very same images, and gives the same;
        its `timings` count from here. Other images make it begin anew. Any thread may call it, but none while
        another uses the policy. Raises nothing: what is wrong with the images, `infer` says.
        """
        ...


@runtime_checkable
class Rehearses(Policy, Protocol):
    """A policy that computes elsewhere while the host waits, and lets it rehearse what comes next meanwhile.

    Code that has not run for 10 ms runs several times slower than right behind itself.
    rehearse: called in the thread that waits for a prediction, shortly before it is there; it may take 0.5 ms
    and changes nothing. None until somebody sets it.
    """

    rehearse: Callable[[], None] | None


@dataclass(frozen=True)
class PolicyOptions:
    """What the user may choose about a policy; None means 'as the checkpoint says'.

    device: 'cpu' or 'cuda'. precision: 'fp32' (cpu only), 'bf16', or 'fp8' (cuda only).
    prompt_form: 'state' (pi0.5's discretised state in the prompt) or 'plain'. resize: 'pil' (openpi) or
    'torch' (lerobot).
    action_dim: the robot's action width, for checkpoints whose statistics are wider or absent.
    delta_actions: for each action whether the network predicts it relative to the state, for openpi
    checkpoints, whose files do not say. asset_id: which of several norm_stats.json. tokenizer: file or
    directory, if not the checkpoint's.
    trained_prefix: rows of prefix that the checkpoint was trained with, where its files do not say.
    guidance: the method of `GUIDANCE` that will be asked for, or ''; 'exact' takes memory of a CUDA engine.
    seed: seeds the starting noise; None draws from the system.
    threads: CPU threads of the whole process (torch's setting); None leaves torch's default, every core.
    """

    device: str = 'cpu'
    precision: str = 'fp32'
    steps: int | None = None
    prompt_form: str | None = None
    resize: str | None = None
    state_dim: int | None = None
    action_dim: int | None = None
    delta_actions: tuple[bool, ...] | None = None
    asset_id: str | None = None
    tokenizer: Path | None = None
    trained_prefix: int | None = None
    guidance: str = ''
    seed: int | None = None
    threads: int | None = None


def load_policy(checkpoint: Path | str, options: PolicyOptions | None = None) -> Policy:
    """Load a checkpoint directory onto the chosen device, ready for its first inference.

    Raises CheckpointError for a bad checkpoint and BackendError for a device or precision that is not there.
    """
    options = options or PolicyOptions()
    if options.device == 'cpu':
        from flashrt_ros.models.backend import load as load_cpu

        return load_cpu(Path(checkpoint), options)
    if options.device == 'cuda':
        from flashrt_ros.engine.backend import load as load_cuda

        return load_cuda(Path(checkpoint), options)
    raise BackendError(f"there is no device '{options.device}'", 'device', "choose 'cpu' or 'cuda'")
