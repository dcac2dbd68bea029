"""The CPU backend: a checkpoint as a `Policy`, computed by the plain model.

It is the reference of every other backend, and fast enough for a nano checkpoint in real time.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from flashrt_ros.errors import BackendError, ObservationError
from flashrt_ros.models.checkpoint import Checkpoint, open_checkpoint
from flashrt_ros.models.guidance import guidance_refusals, make_guide
from flashrt_ros.models.pi import PiModel, load_model
from flashrt_ros.models.tensors import parameter_count
from flashrt_ros.policy import STAGES, Guidance, Observation, PolicyInfo, PolicyOptions, Prediction
from flashrt_ros.tracing import stage

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16}


def load(path: Path, options: PolicyOptions) -> CpuPolicy:
    """Load a checkpoint directory. Raises CheckpointError, ConfigError, or BackendError for the precision."""
    if options.precision not in PRECISIONS:
        raise BackendError(
            f"the CPU cannot run precision '{options.precision}'", 'precision', "choose 'fp32' or 'bf16'"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    checkpoint = open_checkpoint(path, options)
    model = load_model(checkpoint.spec, checkpoint.tensors, PRECISIONS[options.precision])
    return CpuPolicy(checkpoint, model, options)


class CpuPolicy:
    """Implements `flashrt_ros.policy.Policy`. Not thread-safe."""

    def __init__(self, checkpoint: Checkpoint, model: PiModel, options: PolicyOptions) -> None:
        self.processing = checkpoint.processing
        self.spec = checkpoint.spec
        refusals = guidance_refusals(checkpoint.spec, checkpoint.trained_prefix)
        self.info = describe(checkpoint, 'cpu', options.precision, refusals)
        self._model = model
        self._generator = torch.Generator()
        self.reseed(options.seed)
        # Not inference_mode, whose tensors cannot take part in the product that exact guidance needs.
        with torch.no_grad():
            self._table = model.flow_table(checkpoint.spec.steps)
            self._warm_up()

    @torch.no_grad()
    def infer(
        self,
        observation: Observation,
        noise: np.ndarray | None = None,
        guidance: Guidance | None = None,
    ) -> Prediction:
        """See `Policy.infer`. Raises ObservationError, or BackendError if the network gives NaN or Inf."""
        marks = [perf_counter()]
        with stage('preprocess'):
            start = self._start(noise)
            guide = None
            if guidance is not None:
                steps = len(self._table)
                guide = make_guide(guidance, self.processing, self.info, observation.state, steps)
            prepared = self.processing.prepare(observation)
        marks.append(perf_counter())
        with stage('vision'):
            features = self._model.see(prepared.images)
        marks.append(perf_counter())
        with stage('prefill'):
            prefix = self._model.prefill(features, prepared.tokens, prepared.state)
        marks.append(perf_counter())
        with stage('denoise'):
            actions = self._model.denoise(start, prefix, self._table, guide)[0].numpy()
        marks.append(perf_counter())
        with stage('postprocess'):
            check_finite(actions, self.info)
            restored = self.processing.restore(actions, observation.state)
        marks.append(perf_counter())
        seconds = (end - begin for begin, end in pairwise(marks))
        return Prediction(restored, dict(zip(STAGES, seconds, strict=True)))

    def shrink(self, observation: Observation) -> Observation:
        """See `Policy.shrink`."""
        return self.processing.shrunk(observation)

    def reseed(self, seed: int | None) -> None:
        """See `Policy.reseed`."""
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def close(self) -> None:
        del self._model

    def _start(self, noise: np.ndarray | None) -> torch.Tensor:
        shape = (self.spec.horizon, self.spec.action_dim)
        if noise is None:
            return torch.randn(1, *shape, generator=self._generator)
        check_noise(noise, shape)
        return torch.tensor(noise)[None]

    def _warm_up(self) -> None:
        """Lets torch plan its kernels on one view, one token and one flow step, before anybody waits."""
        size = self.spec.vision.image_size
        features = self._model.see(torch.zeros(1, 3, size, size))
        state = torch.zeros(1, self.spec.action_dim)
        prefix = self._model.prefill(features, torch.zeros(1, 1, dtype=torch.int64), state)
        self._model.denoise(torch.zeros(1, self.spec.horizon, self.spec.action_dim), prefix, self._table[:1])


def describe(
    checkpoint: Checkpoint, device: str, precision: str, guidance_refusals: Mapping[str, str]
) -> PolicyInfo:
    """What a policy of this checkpoint expects and gives, whichever backend runs it."""
    spec, processing = checkpoint.spec, checkpoint.processing
    return PolicyInfo(
        name=checkpoint.path.resolve().name,
        family=spec.family,
        views=processing.views,
        state_dim=processing.state_dim,
        action_dim=processing.action_dim,
        horizon=spec.horizon,
        steps=spec.steps,
        device=device,
        precision=precision,
        parameters=parameter_count(spec),
        trained_prefix=checkpoint.trained_prefix,
        guidance_refusals=guidance_refusals,
    )


def check_noise(noise: np.ndarray, shape: tuple[int, int]) -> None:
    """Raises ObservationError unless the starting noise is finite float32 of this shape."""
    if noise.dtype != np.float32 or noise.shape != shape or not np.isfinite(noise).all():
        raise ObservationError(
            f'the noise is {noise.dtype} {list(noise.shape)}, or not finite',
            'noise',
            f'give finite float32 {list(shape)}',
        )


def check_finite(actions: np.ndarray, info: PolicyInfo) -> None:
    """Raises BackendError for actions that no robot may see."""
    if not np.isfinite(actions).all():
        raise BackendError(
            f'the network gave NaN or Inf in {info.precision}',
            info.name,
            "try precision 'fp32', or another checkpoint",
        )
