"""The CUDA backend: a checkpoint as a `Policy`, computed by the engine.

Everything slow happens in `load`: kernels are compiled (once for a GPU) and weights packed (once for a
checkpoint), both cached on disk; then every graph is recorded and run once.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from flashrt_ros.engine.builds import policy_builds
from flashrt_ros.engine.calibration import stored
from flashrt_ros.engine.device import (
    FP8_CAPABILITY,
    Gpu,
    find_gpu,
    gpu_failures,
    require_capability,
    require_memory,
)
from flashrt_ros.engine.driver import keep_forever
from flashrt_ros.engine.engine import Engine
from flashrt_ros.engine.library import KernelLibrary
from flashrt_ros.engine.packing import PRECISIONS
from flashrt_ros.engine.weights import fingerprint, load_packed
from flashrt_ros.errors import BackendError
from flashrt_ros.models.backend import check_finite, check_noise, describe
from flashrt_ros.models.checkpoint import Checkpoint, open_checkpoint
from flashrt_ros.models.guidance import Guide, guidance_refusals, make_guide
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import parameter_count
from flashrt_ros.policy import Guidance, Observation, PolicyOptions, Prediction

BYTES = {'bf16': 2.0, 'fp8': 1.2}
"""Bytes of GPU memory a parameter takes; in fp8 the embedding stays bf16."""

NO_PRODUCT = "the CUDA engine does not differentiate the flow; choose policy.device 'cpu', or rtc_identity"
"""Why exact guidance is refused here."""

WORKSPACE = 1 << 30
"""Buffers, graphs and the libraries' own memory."""


def load(path: Path, options: PolicyOptions) -> CudaPolicy:
    """Load a checkpoint directory onto the first GPU, ready for its first inference.

    Raises BackendError for GPU, driver, memory, precision or sizes; CheckpointError for the checkpoint, and
    in fp8 also when its calibration is missing or belongs to other weights; ConfigError for the options.
    """
    gpu = find_gpu()
    _check_precision(gpu, options.precision)
    checkpoint = open_checkpoint(path, options)
    check_sizes(checkpoint.spec, options.precision)
    with gpu_failures(str(path)):
        engine = _build_engine(path, checkpoint, gpu, options.precision)
    return CudaPolicy(checkpoint, engine, options)


def _build_engine(path: Path, checkpoint: Checkpoint, gpu: Gpu, precision: str) -> Engine:
    """Kernels, packed weights and graphs. What an error leaves behind is garbage and goes with it."""
    spec, processing = checkpoint.spec, checkpoint.processing
    key = fingerprint(path / 'model.safetensors')
    scales = stored(path, key) if precision == 'fp8' else {}
    size = parameter_count(spec) * BYTES[precision] + WORKSPACE
    require_memory(gpu, int(size), f'{spec.family} in {precision}')
    library = KernelLibrary(gpu)
    views = len(processing.views)
    library.compile(policy_builds(gpu, spec, precision, views))
    packed = load_packed(key, spec, precision, views, gpu, lambda: checkpoint.tensors)
    engine = Engine(library, spec, packed, views, scales, processing.resizes_to_bytes)
    engine.capture()
    return engine


def check_sizes(spec: PolicySpec, precision: str) -> None:
    """Raises BackendError for dimensions that no kernel instance covers."""
    vision, towers = spec.vision, (spec.language, spec.expert)
    multiple = 16 if precision == 'fp8' else 8
    widths = [vision.width, vision.mlp, *(w for t in towers for w in (t.width, t.mlp))]
    wrong = [f'a width of {width}' for width in widths if width % multiple or width > 65536]
    wrong += [f'{t.kv_heads} key heads' for t in towers if t.kv_heads != 1]
    wrong += [f'a head size of {t.head_dim}' for t in towers if t.head_dim % 16 or t.head_dim > 256]
    if vision.tokens % 64 or vision.head_dim % 8:
        wrong.append(f'{vision.tokens} image tokens with heads of {vision.head_dim}')
    if wrong:
        raise BackendError(
            f'the kernels do not cover {", ".join(wrong)} in {precision}', spec.family, "choose device 'cpu'"
        )


class CudaPolicy:
    """Implements `flashrt_ros.policy.Policy`. Not thread-safe."""

    def __init__(self, checkpoint: Checkpoint, engine: Engine, options: PolicyOptions) -> None:
        self.processing, self.spec = checkpoint.processing, checkpoint.spec
        refusals = guidance_refusals(checkpoint.spec, checkpoint.trained_prefix) | {'exact': NO_PRODUCT}
        self.info = describe(checkpoint, 'cuda', options.precision, refusals)
        self._engine: Engine | None = engine
        self._generator = torch.Generator()
        self.reseed(options.seed)
        self._staging: dict[str, Tensor] = {}
        self._lost = False

    def infer(
        self,
        observation: Observation,
        noise: np.ndarray | None = None,
        guidance: Guidance | None = None,
    ) -> Prediction:
        """See `Policy.infer`. Raises ObservationError, or BackendError for NaN, Inf or a GPU that fails."""
        began = perf_counter()
        engine = self._require_engine()
        start, guide = self._start(noise), None
        if guidance is not None:
            guide = make_guide(guidance, self.processing, self.info, observation.state, self.spec.steps)
        prepared = self.processing.prepare(observation, self.processing.resizes_to_bytes)
        inputs = (prepared.images, prepared.tokens[0].int(), prepared.state[0], start)
        actions = self._run(engine, inputs, guide)
        finished = perf_counter()
        check_finite(actions, self.info)
        restored = self.processing.restore(actions, observation.state)
        stages = engine.stage_seconds()
        before = finished - began - sum(stages.values())  # processing, staging and launching
        return Prediction(
            restored, {'preprocess': before, **stages, 'postprocess': perf_counter() - finished}
        )

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
        """Give back the GPU memory; the object is of no use afterwards."""
        self._engine = None
        self._staging.clear()
        if not self._lost:
            torch.cuda.empty_cache()

    def _run(self, engine: Engine, inputs: tuple[Tensor, ...], guide: Guide | None) -> np.ndarray:
        """Stage images, tokens, state, noise and guidance, replay, and wait for the actions."""
        with gpu_failures(self.info.name, self._abandon):
            engine.write(*(self._pin(name, x) for name, x in zip(_STAGED, inputs, strict=True)), guide=guide)
            engine.replay()
            return engine.read().numpy().copy()

    def _abandon(self) -> None:
        """Whatever lies in the context has gone with it."""
        if not self._lost:
            keep_forever((self._engine, dict(self._staging)))
        self._lost = True

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise BackendError('the policy is closed', self.info.name, 'load it again')
        return self._engine

    def _start(self, noise: np.ndarray | None) -> Tensor:
        shape = (self.spec.horizon, self.spec.action_dim)
        if noise is None:
            return torch.randn(*shape, generator=self._generator)
        check_noise(noise, shape)
        return torch.from_numpy(noise)

    def _pin(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor in pinned memory of its own, from which the GPU copies without the host waiting."""
        kept = self._staging.get(name)
        if kept is None or kept.numel() < tensor.numel():
            kept = self._staging[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return kept.flatten()[: tensor.numel()].view(tensor.shape).copy_(tensor)


_STAGED = ('images', 'tokens', 'state', 'noise')


def _check_precision(gpu: Gpu, precision: str) -> None:
    if precision not in PRECISIONS:
        raise BackendError(
            f"the engine cannot run precision '{precision}'", 'precision', "choose 'bf16' or 'fp8'"
        )
    if precision == 'fp8':
        require_capability(gpu, FP8_CAPABILITY, "precision 'fp8'")
